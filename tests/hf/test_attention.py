"""Attention of prompts in the engine: where a model takes it, and that it is the same attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StaticCache

import moerun.hf
from moerun.hf import attention

PROMPT = torch.arange(3, 43).view(1, -1)
CLOSE = {"rtol": 0, "atol": 1e-4}
FAMILIES = ("qwen3_moe", "qwen2_moe", "olmoe", "mixtral", "glm4_moe", "deepseek_v2", "deepseek_v3")


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of all calls of prompt_attention."""
    seen: list[tuple[int, int]] = []
    real = attention.prompt_attention

    def spy(engine: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append((query.shape[2], key.shape[2]))
        return real(engine, query, key, *rest, **options)

    monkeypatch.setattr(attention, "prompt_attention", spy)
    return seen


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model(random_checkpoint: Callable[..., Path]) -> PreTrainedModel:
    return moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1)


def theirs(random_checkpoint: Callable[..., Path], family: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(random_checkpoint(family), experts_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_all_families(
    random_checkpoint: Callable[..., Path], lengths: list[tuple[int, int]], family: str
) -> None:
    """Whole, with padding, and in two parts."""
    ours = moerun.hf.from_pretrained(random_checkpoint(family), cpu_threads=1)
    other = theirs(random_checkpoint, family)
    layers = ours.config.num_hidden_layers
    torch.testing.assert_close(ours(PROMPT).logits, other(PROMPT).logits, **CLOSE)
    assert lengths == [(40, 40)] * layers
    rows, mask = PROMPT.view(2, 20), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :7] = 0
    got, want = (m(rows, attention_mask=mask, use_cache=True) for m in (ours, other))
    torch.testing.assert_close(got.logits[mask.bool()], want.logits[mask.bool()], **CLOSE)
    more = torch.cat((mask, torch.ones_like(rows[:, :12])), 1)
    caches = (got.past_key_values, want.past_key_values)
    got, want = (
        m(rows[:, :12], attention_mask=more, past_key_values=c).logits
        for m, c in zip((ours, other), caches, strict=True)
    )
    torch.testing.assert_close(got, want, **CLOSE)
    assert lengths[layers:] == [(20, 20)] * layers + [(12, 32)] * layers


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_agrees_with_eager(
    random_checkpoint: Callable[..., Path], lengths: list[tuple[int, int]], dtype: str
) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1, dtype=dtype)
    got = model(PROMPT).logits
    assert lengths
    model.set_attn_implementation("eager")
    want = model(PROMPT).logits
    assert float((got - want).float().norm() / want.float().norm()) < 3 * 2.0**-8


def test_static_caches(model: PreTrainedModel, lengths: list[tuple[int, int]]) -> None:
    """Whose keys are more than there are tokens: the mask says which count."""
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(PROMPT, past_key_values=cache)
    got = model(torch.tensor([[50]]), past_key_values=cache).logits
    assert (1, 64) in lengths
    want = model(torch.cat((PROMPT, torch.tensor([[50]])), 1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, **CLOSE)


def test_gradients_and_other_attentions_are_torchs(
    model: PreTrainedModel, lengths: list[tuple[int, int]]
) -> None:
    with torch.enable_grad():
        assert model(PROMPT).logits.requires_grad
    model.set_attn_implementation("eager")
    model(PROMPT)
    assert lengths == []


def test_other_models_keep_theirs(
    random_checkpoint: Callable[..., Path], model: PreTrainedModel, lengths: list[tuple[int, int]]
) -> None:
    theirs(random_checkpoint, "qwen3_moe")(PROMPT)
    assert lengths == []
    model(PROMPT)
    assert lengths
