"""What models tell the engine ahead: predictions are those of the routers, cost no result, and are judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import moerun
import moerun.hf
from fake_driver import FakeDriver
from moerun.hf.hints import MOST_TOKENS, LayerHints

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
PREDICTORS = ("gates", "corrected", "history")


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return moerun.hf.from_pretrained(folder, dtype="fp32", cpu_threads=1, warm_start=False, **options)


def text(model: PreTrainedModel, tokens: int = 10) -> torch.Tensor:
    ids = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79]])
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("schedule", ["balanced", "ondemand"])
def test_predictions_cost_no_result(gpu: FakeDriver, predictor: str, schedule: str) -> None:
    options = {"device": "cuda", "gpu_cache": "4MiB", "schedule": schedule}
    model = load(DEMO, predictor=predictor, **options)
    assert torch.equal(text(model), text(load(DEMO, device="cpu")))
    stats = model.moerun_engine.stats()["gpu"]
    made, correct = stats["predictions"], stats["predictions_correct"]
    assert made[0] > 0
    assert all(0 <= right <= all_of_it for right, all_of_it in zip(correct, made, strict=True))
    assert correct[0] > 0


@pytest.mark.parametrize("options", [{"prefetch": "none"}, {"device": "cpu"}])
def test_nobody_predicts_in_vain(gpu: FakeDriver, options: dict[str, Any]) -> None:
    model = load(DEMO, **{"device": "cuda", "gpu_cache": "4MiB", **options})
    assert not any(hasattr(module, "moerun_hints") for module in model.modules())


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "glm4_moe", "olmoe", "qwen2_moe"])
def test_hints_name_what_the_later_routers_would_choose(
    gpu: FakeDriver, random_checkpoint: Callable[..., Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this layer's state, for the next layers in order; not for a prompt, and unseen by hooks."""
    model = load(random_checkpoint(family), device="cuda", gpu_cache="1MiB")
    modules = [m for m in model.modules() if hasattr(m, "moerun_layer")]
    layers = [m.moerun_layer.value for m in modules]
    parents = [p for p in model.modules() if any(c in modules for c in p.children())]
    routers = [getattr(p, "gate", None) or p.router for p in parents]
    seen: list[torch.Tensor] = []
    given: list[tuple[int, torch.Tensor, int]] = []
    for router in routers:
        router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def hint(self: moerun.Layer, ids: torch.Tensor, distance: int) -> None:
        given.append((layers.index(self), ids, distance))

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(moerun.Layer, "hint", hint)
        model(torch.arange(MOST_TOKENS + 1)[None] % 64 + 3)
        assert given == []
        seen.clear()
        model(torch.tensor([[5, 6, 7]]))
    assert len(seen) == len(layers) >= 2
    states = [state.reshape(3, -1) for state in seen]
    assert [(target, distance) for target, _, distance in given] == [
        (place + distance, distance)
        for place in range(len(layers))
        for distance in (1, 2, 3)
        if place + distance < len(layers)
    ]
    for target, ids, distance in given:
        router = routers[target]
        with torch.no_grad():  # as above: the engine's router, which sorts its ties in its own way
            expected = type(router).forward(router, states[target - distance])[2]
        assert torch.equal(ids, expected)


class _Recorder:
    """Stands in for a layer."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def hint(self, ids: torch.Tensor, distance: int) -> None:
        self.given.append(ids)


class _Signs(torch.nn.Module):
    """A router whose choice shows its state."""

    def forward(self, state: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        return None, None, state.round().long()


def test_the_corrected_state_is_that_of_the_later_layer() -> None:
    """A drift that is the same in every step is learned exactly."""
    drift = torch.tensor([3.0, -2.0])
    first, second, layer = LayerHints(correct=True), LayerHints(correct=True), _Recorder()
    first.follow(1, _Signs(), layer, second)  # type: ignore[arg-type]
    for step in range(4):
        state = torch.tensor([[float(step), 1.0], [5.0, -float(step)]])
        first.predict(state)
        second.predict(state + drift)
        learned = drift if step >= 1 else torch.zeros(2)
        assert torch.equal(layer.given[step], (state + learned).round().long())


def test_compiled_models_give_no_hints(gpu: FakeDriver, random_checkpoint: Callable[..., Path]) -> None:
    model = load(random_checkpoint("qwen3_moe"), device="cuda", gpu_cache="1MiB")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for _ in range(2):  # before the first batch nobody listens
            expected = model(ids).logits
        before = model.moerun_engine.stats()["gpu"]["predictions"]
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(ids).logits, expected)
    after = model.moerun_engine.stats()["gpu"]["predictions"]
    assert sum(before) > 0
    assert after == before
