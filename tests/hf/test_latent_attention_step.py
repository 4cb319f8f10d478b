"""Decode steps of multi-head latent attention in the engine, over transformers' caches of latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import moerun.hf
from moerun.hf.dense import QuantisedLinear

PROMPT = 9
CLOSE = {"rtol": 0, "atol": 1e-4}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
# A query without a rank of its own, pairs that lie apart, scores and rotations that are scaled.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("deepseek_v2", {}),
    "v2 whole query": ("deepseek_v2", {"q_lora_rank": None}),
    "v2 yarn": ("deepseek_v2", {"rope_parameters": _YARN}),
    "v3": ("deepseek_v3", {}),
    "v3 whole query": ("deepseek_v3", {"q_lora_rank": None}),
    "v3 halves": ("deepseek_v3", {"rope_interleave": False}),
    "v3 yarn": ("deepseek_v3", {"rope_parameters": _YARN}),
}


class Pair(NamedTuple):
    ours: PreTrainedModel
    theirs: PreTrainedModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from random_checkpoints import save_random_checkpoint

    made: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp("latent")
            family, options = VARIANTS[variant]
            save_random_checkpoint(family, made[variant], **options)
        return made[variant]

    return folder


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, saved: Callable[[str], Path]) -> Pair:
    folder = saved(request.param)
    return Pair(
        moerun.hf.from_pretrained(folder, cpu_threads=1),
        AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager"),
    )


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 128, (rows, count), generator=torch.Generator().manual_seed(seed))


def test_steps_are_transformers(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    """Of several sequences and tokens, logits and what is left in the cache; and after cropping."""
    caches = [model(tokens(2, PROMPT), use_cache=True).past_key_values for model in pair]
    for count, crop in ((3, 2), (1, 0), (8, 4), (1, 0)):
        more = tokens(2, count, seed=count)
        logits = [m(more, past_key_values=c).logits for m, c in zip(pair, caches, strict=True)]
        torch.testing.assert_close(*logits, **CLOSE)
        for cache in caches:
            cache.crop(-crop)
    layers = pair.ours.config.num_hidden_layers
    assert steps == [(2, count) for count in (3, 1, 8, 1) for _ in range(layers)]
    for layer, other in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, **CLOSE)
        torch.testing.assert_close(layer.values, other.values, **CLOSE)


def test_greedy_text_of_padded_batches(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    ids, mask = tokens(3, PROMPT), torch.ones(3, PROMPT, dtype=torch.int64)
    for row, padding in enumerate((0, 4, 8)):
        ids[row, :padding], mask[row, :padding] = 2, 0
    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    texts = [model.generate(ids, attention_mask=mask, pad_token_id=2, **options) for model in pair]
    assert set(steps) == {(3, 1)}
    assert torch.equal(*texts)


@pytest.mark.parametrize("name", ["q_a_proj", "q_a_layernorm", "kv_a_layernorm", "kv_b_proj"])
def test_watched_parts_are_torchs(
    saved: Callable[[str], Path], steps: list[tuple[int, ...]], name: str
) -> None:
    model = moerun.hf.from_pretrained(saved("v2"), cpu_threads=1)
    cache = model(tokens(1, PROMPT), use_cache=True).past_key_values
    calls: list[int] = []
    for layer in model.model.layers:
        getattr(layer.self_attn, name).register_forward_hook(lambda *_: calls.append(1))
    model(tokens(1, 1), past_key_values=cache)
    assert steps == []
    assert len(calls) == model.config.num_hidden_layers


def test_expanded_keys_are_torchs(saved: Callable[[str], Path], steps: list[tuple[int, ...]]) -> None:
    """A cache that holds something else than latents is not touched."""
    model = moerun.hf.from_pretrained(saved("v3"), cpu_threads=1)
    cache = model(tokens(1, PROMPT), use_cache=True).past_key_values
    attention, config = model.model.layers[0].self_attn, model.config
    layer = cache.layers[0]
    x, heads = torch.randn(1, 1, config.hidden_size), config.num_attention_heads
    assert attention.cache_layer(x, None, cache, {}) is layer
    layer.keys = torch.randn(1, heads, PROMPT, config.qk_head_dim)
    layer.values = torch.randn(1, heads, PROMPT, config.v_head_dim)
    assert attention.cache_layer(x, None, cache, {}) is None
    assert steps == []


def test_quantised_projections(saved: Callable[[str], Path], steps: list[tuple[int, ...]]) -> None:
    """Latents are expanded by a plain matrix, and text is that of the modules one by one."""
    model = moerun.hf.from_pretrained(saved("v2"), cpu_threads=1, dense="int8")
    attention = model.model.layers[0].self_attn
    assert type(attention.q_b_proj) is QuantisedLinear
    assert type(attention.kv_b_proj) is not QuantisedLinear
    logits = []
    for watched in (False, True):
        if watched:
            for layer in model.model.layers:
                layer.self_attn.o_proj.register_forward_hook(lambda *_: None)
        cache = model(tokens(1, PROMPT), use_cache=True).past_key_values
        logits.append(model(tokens(1, 1), past_key_values=cache).logits)
    assert steps == [(1, 1)] * model.config.num_hidden_layers
    difference = (logits[0] - logits[1]).norm() / logits[1].norm()
    assert float(difference) < 0.02  # int8's bound, as activations may be rounded to 8 bits on either way
