"""Whole decoder layers in the engine: which models have them, and what sends them back to their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import moerun.hf
from moerun.dense import Decoder, DecoderLayer

CLOSE = {"rtol": 0, "atol": 1e-4}
PROMPT = torch.arange(3, 14).view(1, -1)
TOKEN = torch.tensor([[40]])


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every layer that the engine has run whole."""
    seen: list[int] = []
    real = Decoder.forward

    def spy(self: Decoder, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.extend([x.shape[0] * x.shape[1]] * len(self.layers))
        return real(self, x, *rest)

    monkeypatch.setattr(Decoder, "forward", spy)
    return seen


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model(random_checkpoint: Callable[..., Path]) -> PreTrainedModel:
    return moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1)


def step(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a token behind the prompt."""
    cache = model(PROMPT).past_key_values
    return model(TOKEN, past_key_values=cache).logits[:, -1]


def at_once(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.cat((PROMPT, TOKEN), 1)).logits[:, -1]


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_equals_the_parts(
    random_checkpoint: Callable[..., Path], layers: list[int], family: str, dtype: str
) -> None:
    """Calls to the parts round activations at the same places."""
    folder = random_checkpoint(family)
    model = moerun.hf.from_pretrained(folder, cpu_threads=1, dtype=dtype)
    cache = model(PROMPT.repeat(2, 1)).past_key_values
    got = model(TOKEN.repeat(2, 3), past_key_values=cache).logits
    assert layers == [6] * model.config.num_hidden_layers
    for module in model.modules():
        if hasattr(module, "moerun_layer"):
            module.register_forward_hook(lambda module, inputs, output: None)
    cache = model(PROMPT.repeat(2, 1)).past_key_values
    want = model(TOKEN.repeat(2, 3), past_key_values=cache).logits
    assert len(layers) == model.config.num_hidden_layers
    tolerance = CLOSE if dtype == "fp32" else {"rtol": 0, "atol": float(want.abs().max()) * 2.0**-6}
    torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("family", ["qwen2_moe", "glm4_moe", "deepseek_v3", "gpt_oss"])
def test_layers_with_more_in_them_are_called_part_by_part(
    random_checkpoint: Callable[..., Path], layers: list[int], family: str
) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint(family), cpu_threads=1)
    torch.testing.assert_close(step(model), at_once(model), **CLOSE)
    assert layers == []


def scale_router(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.gate.weight.mul_(-1)


def scale_norms(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.weight.mul_(2)
        layer.post_attention_layernorm.weight.add_(0.5)


def replace_norms(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.input_layernorm = torch.nn.Identity()


def hook(name: str) -> Callable[[PreTrainedModel], None]:
    def change(model: PreTrainedModel) -> None:
        def double(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2

        for layer in model.model.layers:
            layer.get_submodule(name).register_forward_hook(double)

    change.__name__ = f"hook_{name}"
    return change


def patch_experts(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        real = layer.mlp.experts.forward
        layer.mlp.experts.forward = lambda *inputs, real=real: real(*inputs) * 2


@pytest.mark.parametrize(
    "change",
    [
        scale_router,
        scale_norms,
        replace_norms,
        hook("mlp"),
        hook("mlp.experts"),
        hook("self_attn"),
        hook("post_attention_layernorm"),
        patch_experts,
    ],
    ids=lambda change: change.__name__,
)
def test_changed_or_watched_parts_are_called(
    model: PreTrainedModel, layers: list[int], change: Callable[[PreTrainedModel], None]
) -> None:
    before = step(model)
    assert layers
    del layers[:]
    change(model)
    got = step(model)
    assert layers == []
    torch.testing.assert_close(got, at_once(model), **CLOSE)
    assert not torch.equal(got, before)


def test_routers_and_norms_notice_changes_alone(random_checkpoint: Callable[..., Path]) -> None:
    """Also where no layer is run whole: a router's correction is a buffer, of which the engine has a copy."""
    folder = random_checkpoint("deepseek_v3")
    ours = moerun.hf.from_pretrained(folder, cpu_threads=1)
    theirs = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    for model in (ours, theirs):
        for layer in model.model.layers[1:]:
            correction = layer.mlp.gate.e_score_correction_bias
            correction.add_(torch.arange(len(correction)) * 0.3)
        model.model.norm.weight.mul_(-2)
    torch.testing.assert_close(at_once(ours), at_once(theirs), **CLOSE)


def test_logits_of_routers_are_recorded(model: PreTrainedModel, layers: list[int]) -> None:
    cache = model(PROMPT).past_key_values
    got = model(TOKEN, past_key_values=cache, output_router_logits=True).router_logits
    want = model(torch.cat((PROMPT, TOKEN), 1), output_router_logits=True).router_logits
    assert len(got) == model.config.num_hidden_layers
    for one, whole in zip(got, want, strict=True):
        torch.testing.assert_close(one, whole[-1:], **CLOSE)


def test_hidden_states_are_recorded(model: PreTrainedModel, layers: list[int]) -> None:
    cache = model(PROMPT).past_key_values
    got = model(TOKEN, past_key_values=cache, output_hidden_states=True).hidden_states
    want = model(torch.cat((PROMPT, TOKEN), 1), output_hidden_states=True).hidden_states
    assert len(got) == model.config.num_hidden_layers + 1
    for one, whole in zip(got, want, strict=True):
        torch.testing.assert_close(one, whole[:, -1:], **CLOSE)


def test_experts_count_their_tokens(model: PreTrainedModel, layers: list[int]) -> None:
    def routed() -> list[int]:
        return [sum(layer["expert_tokens"]) for layer in model.moerun_engine.stats()["layers"]]

    cache = model(PROMPT).past_key_values
    before = routed()
    model(TOKEN, past_key_values=cache)
    assert layers
    top_k = model.config.num_experts_per_tok
    assert [now - then for now, then in zip(routed(), before, strict=True)] == [top_k] * len(before)


def test_refuses_parts_that_do_not_fit() -> None:
    from moerun import Engine, LayerSpec
    from moerun.dense import Attention, RmsNorm, Router

    with Engine(cpu_threads=1) as engine:
        linear = engine.add_linear(torch.randn(16, 16))
        attention = Attention(engine, linear, linear, linear, linear, head_dim=16)
        norm, router = RmsNorm(engine, torch.ones(16), 1e-6), Router(engine, torch.randn(4, 16), 2)
        tensors = {"gate_up": torch.randn(4, 16, 16), "down": torch.randn(4, 16, 8)}
        experts = engine.add_layer(LayerSpec(4, 16, 8, top_k=2), tensors)
        DecoderLayer(norm, attention, norm, router, experts)
        with pytest.raises(ValueError, match="all parts must have one hidden size"):
            DecoderLayer(RmsNorm(engine, torch.ones(8), 1e-6), attention, norm, router, experts)
        with pytest.raises(ValueError, match="the router has 5 experts, the layer 4"):
            DecoderLayer(norm, attention, norm, Router(engine, torch.randn(5, 16), 2), experts)
        exact = Router(engine, torch.randn(4, 16), 2, float32_logits=True)
        with pytest.raises(ValueError, match="one with float32 logits"):
            DecoderLayer(norm, attention, norm, exact, experts)
