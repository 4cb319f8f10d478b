"""Attention of few queries: against the formula, and where a model takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

import moerun.hf
from moerun.hf import attention
from random_checkpoints import save_random_checkpoint

BF16_EPSILON = 2.0**-8  # of rounding to nearest, relative
sizes = st.integers(1, 5)


@given(
    sizes,
    sizes,
    sizes,
    st.integers(1, 8),
    st.integers(1, 70),
    st.sampled_from((None, bool, float)),
    st.data(),
)
def test_equals_the_formula(
    batch: int,
    kv_heads: int,
    groups: int,
    queries: int,
    keys: int,
    mask_type: type | None,
    data: st.DataObject,
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    width = 16

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    query = random(batch, kv_heads * groups, queries, width)
    key, value = random(batch, kv_heads, keys, width), random(batch, kv_heads, keys, width)
    mask = None
    if mask_type is bool:
        mask = torch.rand(batch, 1, queries, keys + 3, generator=generator) < 0.7
        mask[..., 0] = True  # every query sees a key
    elif mask_type is float:
        mask = torch.randn(1, 1, queries, keys, generator=generator)

    got = attention.few_queries(query, key, value, mask).float()

    key, value = (t.float().repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query.float() @ key.transpose(2, 3) * width**-0.5
    rounded = float(scores.abs().max()) * BF16_EPSILON
    if mask is not None:
        mask = mask[..., :keys]
        scores = scores.masked_fill(~mask, -torch.inf) if mask_type is bool else scores + mask
    want = scores.softmax(-1) @ value
    # Scores off by d change each weight by a factor within exp(+-2d); then weights and sums are rounded.
    error = torch.expm1(torch.tensor(2 * rounded + 2 * BF16_EPSILON)) * value.abs().max()
    assert float((got - want).abs().max()) <= float(error) + BF16_EPSILON * float(want.abs().max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("attention")
    save_random_checkpoint("deepseek_v3", path)
    return path


def load_watched(folder: Path) -> PreTrainedModel:
    """A model whose attention the engine leaves to torch, as somebody watches a part of it."""
    model = moerun.hf.from_pretrained(folder, cpu_threads=1, dtype="bf16")
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda *_: None)
    return model


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of queries of all calls of few_queries."""
    seen: list[int] = []
    real = attention.few_queries

    def spy(query: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(query.shape[2])
        return real(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "few_queries", spy)
    return seen


def test_decode_takes_it_and_prefill_does_not(folder: Path, lengths: list[int]) -> None:
    model = load_watched(folder)
    prompt = torch.arange(12).view(1, -1)
    model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    layers = model.config.num_hidden_layers
    assert lengths == [1] * (2 * layers)  # the first new token comes from the prefill


def test_padded_batches_agree_with_eager(folder: Path, lengths: list[int]) -> None:
    model = load_watched(folder)
    prompt, mask = torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.long)
    mask[0, :2] = 0
    logits = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            cache = model(prompt, attention_mask=mask, use_cache=True).past_key_values
            more = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
            logits[implementation] = model(prompt[:, :1], attention_mask=more, past_key_values=cache).logits
    assert lengths
    assert set(lengths) <= {1, 5}
    difference = (logits["sdpa"] - logits["eager"]).float().norm() / logits["eager"].float().norm()
    assert float(difference) < 3 * BF16_EPSILON


def test_other_models_keep_theirs(folder: Path, lengths: list[int]) -> None:
    from transformers import AutoModelForCausalLM

    moerun.hf.from_pretrained(folder, cpu_threads=1, dtype="bf16")
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    other.generate(torch.arange(12).view(1, -1), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert lengths == []
