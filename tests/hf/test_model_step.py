"""Decode steps of whole models in one call: equal to the modules, and taken only where they may be."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import moerun.hf
from moerun.hf.model_step import ModelStep

FAMILIES = ("qwen3_moe", "olmoe", "mixtral")
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tokens of all steps that were taken."""
    seen: list[tuple[int, ...]] = []
    real = ModelStep.__call__

    def spy(self: ModelStep, call: Any) -> torch.Tensor:
        seen.append(tuple(call.tokens.shape))
        return real(self, call)

    monkeypatch.setattr(ModelStep, "__call__", spy)
    return seen


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model(random_checkpoint: Callable[..., Path]) -> PreTrainedModel:
    return moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1)


def ids(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 128, (rows, count), generator=torch.Generator().manual_seed(seed))


def prefilled(model: PreTrainedModel, rows: int = 1, count: int = 9, **options: Any) -> Any:
    return model(input_ids=ids(rows, count), use_cache=True, **options).past_key_values


def by_modules(model: PreTrainedModel, **options: Any) -> torch.Tensor:
    """Logits of a call of the class's own forward, which asks the model's modules."""
    return type(model).forward(model, **options).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "count", "kept"), [(1, 1, 1), (3, 1, 0), (2, 5, 2), (1, 8, 0)])
def test_equals_the_modules(
    random_checkpoint: Callable[..., Path],
    steps: list[tuple[int, ...]],
    family: str,
    dtype: str,
    rows: int,
    count: int,
    kept: int,
) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint(family), cpu_threads=1, dtype=dtype)
    options = {"input_ids": ids(rows, count, seed=1), "logits_to_keep": kept}
    got = model(past_key_values=prefilled(model, rows), **options).logits
    assert steps == [(rows, count)]
    want = by_modules(model, past_key_values=prefilled(model, rows), **options)
    assert len(steps) == 1
    assert got.shape == want.shape == (rows, kept or count, model.config.vocab_size)
    assert got.dtype is want.dtype
    tolerance = CLOSE if dtype == "fp32" else {"rtol": 0, "atol": float(want.abs().max()) * 2.0**-6}
    torch.testing.assert_close(got, want, **tolerance)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_padding_and_positions(random_checkpoint: Callable[..., Path], data: st.DataObject) -> None:
    """Masks with holes anywhere, and positions that somebody chose."""
    model = _loaded(random_checkpoint("qwen3_moe"))
    rows, past, count = (data.draw(st.integers(1, most)) for most in (3, 12, 4))
    mask = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=past, max_size=past), min_size=rows, max_size=rows)
        )
    )
    mask[:, -1] = True  # of a row without any key before, modules and kernels make different means
    later = torch.cat((mask, torch.ones(rows, count, dtype=torch.bool)), 1).long()
    options: dict[str, Any] = {"input_ids": ids(rows, count, seed=1), "attention_mask": later}
    if data.draw(st.booleans()):
        first = data.draw(st.integers(0, 3000))
        options["position_ids"] = torch.arange(first, first + count)[None].expand(
            rows if data.draw(st.booleans()) else 1, -1
        )
    got = model(past_key_values=prefilled(model, rows, past, attention_mask=mask.long()), **options).logits
    cache = prefilled(model, rows, past, attention_mask=mask.long())
    torch.testing.assert_close(got, by_modules(model, past_key_values=cache, **options), **CLOSE)


_models: dict[Path, PreTrainedModel] = {}


def _loaded(folder: Path) -> PreTrainedModel:
    if folder not in _models:
        _models[folder] = moerun.hf.from_pretrained(folder, cpu_threads=1)
    return _models[folder]


def test_every_token_after_the_first_is_a_step(model: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    model.generate(ids(2, 9), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert steps == [(2, 1)] * 4


def test_caches_are_transformers_own(model: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    """What a step leaves can be cropped, repeated and continued by anybody."""
    cache = prefilled(model)
    model(input_ids=ids(1, 3, seed=1), past_key_values=cache)
    assert cache.get_seq_length() == 12
    cache.crop(-2)
    cache.batch_repeat_interleave(2)
    got = model(input_ids=ids(2, 1, seed=2), past_key_values=cache).logits
    assert steps == [(1, 3), (2, 1)]
    whole = torch.cat((ids(1, 9), ids(1, 3, seed=1)[:, :1]), 1).repeat(2, 1)
    want = model(input_ids=torch.cat((whole, ids(2, 1, seed=2)), 1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, **CLOSE)


def test_a_sliding_window_that_is_full(
    random_checkpoint: Callable[..., Path], steps: list[tuple[int, ...]]
) -> None:
    """Also with a cache that keeps all keys: the mask hides what has left the window."""
    model = moerun.hf.from_pretrained(random_checkpoint("mixtral"), cpu_threads=1)
    model.config.sliding_window = 10
    cache = DynamicCache()
    whole = torch.cat((ids(1, 9), ids(1, 4, seed=1)), 1)
    model(input_ids=whole[:, :9], past_key_values=cache)
    got = [model(input_ids=whole[:, i : i + 1], past_key_values=cache).logits for i in range(9, 13)]
    want = model(input_ids=whole, use_cache=False).logits[:, 9:]
    torch.testing.assert_close(torch.cat(got, 1), want, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"output_hidden_states": True},
        {"output_router_logits": True},
        {"return_dict": False},
        {"use_cache": False},
        {"logits_to_keep": torch.tensor([0])},
        {"attention_mask": torch.ones(1, 1, 1, 10, dtype=torch.bool)},
        {"labels": ids(1, 1)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_calls_go_to_the_modules(
    model: PreTrainedModel, steps: list[tuple[int, ...]], options: dict[str, Any]
) -> None:
    model(input_ids=ids(1, 1), past_key_values=prefilled(model), **options)
    assert steps == []


def write_embedding(model: PreTrainedModel) -> None:
    model.model.embed_tokens.weight.mul_(0.5)


def replace_embedding(model: PreTrainedModel) -> None:
    model.set_input_embeddings(copy.deepcopy(model.get_input_embeddings()))


def write_last_norm(model: PreTrainedModel) -> None:
    model.model.norm.weight.add_(1)


def swap_layers(model: PreTrainedModel) -> None:
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number


def drop_a_layer(model: PreTrainedModel) -> None:
    del model.model.layers[-1]
    model.config.num_hidden_layers -= 1


def hook_the_model(model: PreTrainedModel) -> None:
    model.register_forward_hook(lambda module, inputs, output: output)


def hook_everything(model: PreTrainedModel) -> None:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    model.handle = handle  # type: ignore[assignment]


def patch_a_projection(model: PreTrainedModel) -> None:
    real = model.model.layers[1].self_attn.q_proj.forward
    model.model.layers[1].self_attn.q_proj.forward = lambda x: real(x) * 2


def patch_forward(model: PreTrainedModel) -> None:
    real = model.forward
    model.forward = lambda **options: real(**options)


@pytest.mark.parametrize(
    "change",
    [
        write_embedding,
        replace_embedding,
        write_last_norm,
        swap_layers,
        drop_a_layer,
        hook_the_model,
        hook_everything,
        patch_a_projection,
        patch_forward,
    ],
)
def test_changed_models_go_to_their_modules(
    model: PreTrainedModel, steps: list[tuple[int, ...]], change: Callable[[PreTrainedModel], None]
) -> None:
    change(model)
    try:
        cache = prefilled(model)
        got = model(input_ids=ids(1, 1, seed=1), past_key_values=cache).logits
        assert steps == []
        whole = torch.cat((ids(1, 9), ids(1, 1, seed=1)), 1)
        want = by_modules(model, input_ids=whole, use_cache=False)[:, -1:]
        torch.testing.assert_close(got, want, **CLOSE)
    finally:
        if change is hook_everything:
            model.handle.remove()


def test_a_copy_is_its_own_model(model: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    other = copy.deepcopy(model)
    other.model.embed_tokens.weight.mul_(2)
    cache = prefilled(other)
    got = other(input_ids=ids(1, 1, seed=1), past_key_values=cache).logits
    assert steps == []
    whole = torch.cat((ids(1, 9), ids(1, 1, seed=1)), 1)
    torch.testing.assert_close(got, other(input_ids=whole, use_cache=False).logits[:, -1:], **CLOSE)


def test_gradients_are_torchs(model: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    cache = prefilled(model)
    with torch.enable_grad():
        logits = model(input_ids=ids(1, 1), past_key_values=cache).logits
    assert steps == []
    assert logits.requires_grad


def test_a_model_leaves_no_garbage(random_checkpoint: Callable[..., Path]) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1)
    model(input_ids=ids(1, 1), past_key_values=prefilled(model))
    left, engine = weakref.ref(model), weakref.ref(model.moerun_engine)
    gc.collect()
    gc.disable()
    try:
        del model
        assert left() is None
    finally:
        gc.enable()
    gc.collect()
    assert engine() is None


class _Keeper(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Nothing is left to show."""


@pytest.mark.parametrize("family", FAMILIES)
def test_text_equals_transformers(
    random_checkpoint: Callable[..., Path], steps: list[tuple[int, ...]], family: str
) -> None:
    """64 greedy tokens of a batch with padding; and of one sequence, by test_decode_loop.py's loop."""
    folder = random_checkpoint(family)
    ours = moerun.hf.from_pretrained(folder, cpu_threads=1)
    theirs = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    prompt, mask = ids(3, 12), torch.ones(3, 12, dtype=torch.int64)
    mask[1, :5] = 0
    mask[2, :9] = 0
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    got, want = (m.generate(prompt, attention_mask=mask, **options) for m in (ours, theirs))
    assert torch.equal(got, want)
    keeper = _Keeper()
    ours.generate(prompt[:1], streamer=keeper, **options)
    assert keeper.tokens == theirs.generate(prompt[:1], **options)[0].tolist()
    assert steps == [(3, 1)] * 63
