"""Attention of many queries on every instruction set, against float64 with the bound that its types allow.

The bound is that of attention_oracle.py from the scores on, and one step more: where the kernels multiply
bf16 pairs, a weight is rounded to bf16 before it meets a value.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_oracle import EXP_ROUNDINGS
from expert_layers import ISAS_WITH_BF16_DOT
from moerun import Engine, _core
from moerun.dense import prompt_attention
from oracle import TINY, UNIT_ROUNDOFF, U, of_sums

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
U16 = UNIT_ROUNDOFF[torch.float16]  # subnormal numbers have no digits below the smallest normal's
BLOCK = 192  # keys whose sums have one maximum


@pytest.fixture(scope="module")
def engine_of() -> Iterator[Any]:
    @functools.cache
    def engine(isa: str, threads: int) -> Engine:
        return Engine(device="cpu", isa=isa, cpu_threads=threads)

    yield engine
    engine.cache_clear()


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen_without_mask(tokens: int, keys: int) -> torch.Tensor:
    return torch.arange(keys) <= keys - tokens + torch.arange(tokens)[:, None]


def check(
    got: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    in_bf16: bool = False,
) -> None:
    """`got` [S, T, heads, dim] against float64; tokens that see nothing only have to be finite."""
    assert got.isfinite().all()
    heads, tokens, dim = q.shape[1:]
    count = k.shape[2]
    q, k, v = q.double(), *(t.double().repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores, sizes = scale * (q @ k.transpose(2, 3)), scale * (q.abs() @ k.abs().transpose(2, 3))
    off = of_sums(dim + 2, sizes).bound
    seen = seen_without_mask(tokens, count).expand(scores.shape)
    if mask is not None:
        part = mask[..., :count]
        seen = (part if part.dtype is torch.bool else part > torch.finfo(part.dtype).min).expand(scores.shape)
        if part.dtype is not torch.bool:
            scores = scores + part.double().masked_fill(~seen, 0.0)
            off = off + U * scores.abs()
    scores, off = scores.masked_fill(~seen, -torch.inf), off.masked_fill(~seen, 0.0)
    if sinks is not None:
        of_heads = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores, off = torch.cat((scores, of_heads), -1), torch.cat((off, torch.zeros_like(of_heads)), -1)
    most = scores.amax(-1, keepdim=True)
    spread = (most - scores).masked_fill(scores == -torch.inf, 0.0).amax(-1, keepdim=True)
    distance = off.amax(-1, keepdim=True) + U * spread + EXP_ROUNDINGS * (count // BLOCK + 2) * U
    weights = scores.softmax(-1)[..., :count]
    want, magnitude = weights @ v, weights @ v.abs()
    bound = magnitude * torch.expm1(2 * distance) + 2 * of_sums(count + 2, magnitude).bound
    if in_bf16:
        bound = bound + UNIT_ROUNDOFF[torch.bfloat16] * magnitude
    bound = bound + count * TINY * v.abs().amax((2, 3), keepdim=True)
    bound = (
        bound + UNIT_ROUNDOFF[got.dtype] * (want.abs() + bound) + torch.finfo(got.dtype).smallest_normal * U16
    )
    error = (got.double().transpose(1, 2) - want).abs()
    sees = seen.any(-1)
    assert (error <= bound)[sees].all(), float((error / bound)[sees].max())


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("isa", _core.available_isas())
def test_equals_float64(engine_of: Any, isa: str, data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 4), (1, 8)]))
    most = 24 if isa == "ref" else 130
    tokens = data.draw(st.integers(1, most))
    keys = tokens + data.draw(st.sampled_from([0, 0, 1, 30] if isa == "ref" else [0, 0, 1, 200]))
    dim, value_dim = data.draw(
        st.sampled_from([(8, 8), (16, 16), (40, 24), (64, 64), (72, 72), (128, 96), (33, 17)])
    )
    sequences = data.draw(st.integers(1, 2))
    dtype = data.draw(st.sampled_from(DTYPES))
    q = normal(0, sequences, tokens, kv_heads * group, dim).to(dtype).transpose(1, 2)
    k = normal(1, sequences, kv_heads, keys + 5, dim).to(dtype)[:, :, :keys]
    v = normal(2, sequences, keys, kv_heads, value_dim).to(dtype).transpose(1, 2)
    sinks = normal(3, kv_heads * group) if data.draw(st.booleans()) else None
    scale = data.draw(st.sampled_from([None, 0.05, 1.0]))
    mask = None
    kind = data.draw(st.sampled_from(["none", "bool", "float", "window"]))
    if kind != "none":
        shape = (data.draw(st.sampled_from([1, sequences])), 1, tokens, keys + 3)
        mask = normal(4, *shape) < 0.7
        mask[normal(5, *shape[:3]) < -1.5] = False  # padding sees nothing
        if kind == "window":
            behind = (keys - tokens + torch.arange(tokens))[:, None] - torch.arange(keys + 3)
            mask = ((behind >= 0) & (behind < 20)).expand(shape)
        elif kind == "float":
            added = data.draw(st.sampled_from(DTYPES))
            mask = normal(6, *shape).to(added).masked_fill(~mask, torch.finfo(added).min)
    engine = engine_of(isa, data.draw(st.sampled_from([1, 2])))
    got = prompt_attention(engine, q, k, v, scale=scale, mask=mask, sinks=sinks)
    assert got.shape == (sequences, tokens, kv_heads * group, value_dim)
    assert got.dtype is dtype
    in_bf16 = dtype is torch.bfloat16 and isa in ISAS_WITH_BF16_DOT
    check(got, q, k, v, dim**-0.5 if scale is None else scale, mask, sinks, in_bf16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_does_not_depend_on_the_threads(engine_of: Any, dtype: torch.dtype) -> None:
    q, k, v = (normal(i, 2, heads, 300, 64).to(dtype) for i, heads in enumerate((8, 2, 2)))
    best = _core.choose_isa("")
    one, two, three = (prompt_attention(engine_of(best, threads), q, k, v) for threads in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)


def test_large_scores_and_what_is_not_seen(engine_of: Any) -> None:
    """Scores beyond what exp can take, and keys that a token does not see."""
    q, k, v = (normal(i, 1, 2, 40, 32) * factor for i, factor in enumerate((60.0, 60.0, 1.0)))
    engine = engine_of(_core.choose_isa(""), 1)
    check(prompt_attention(engine, q, k, v), q, k, v, 32**-0.5)
    later = prompt_attention(engine, q[:, :, :5], k[:, :, :5], v[:, :, :5])
    together = torch.cat((v[:, :, :5], torch.full((1, 2, 35, 32), 1e3)), 2)
    assert torch.equal(prompt_attention(engine, q, k, together)[:, :5], later)


def test_numpy(engine_of: Any) -> None:
    q, k, v = (normal(i, 1, 2, 7, 16) for i in range(3))
    engine = engine_of(_core.choose_isa(""), 1)
    got = prompt_attention(engine, *(t.numpy() for t in (q, k, v)))
    assert torch.equal(torch.from_numpy(got), prompt_attention(engine, q, k, v))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(1, 3, 9, 16)}, "must fit"),
        ({"keys": torch.zeros(1, 2, 9, 8)}, "must fit"),
        ({"values": torch.zeros(1, 2, 8, 16)}, "must fit"),
        ({"values": torch.zeros(1, 2, 9, 16).half()}, "must fit"),
        ({"queries": torch.zeros(1, 4, 16, 5).transpose(2, 3)}, "contiguous rows"),
        ({"queries": torch.zeros(1, 4, 10, 16)}, "the last of the keys, got 10 and 9"),
        ({"mask": torch.zeros(1, 1, 5, 8, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.zeros(1, 1, 5, 9, dtype=torch.int64)}, "float32, float16 or bfloat16"),
        ({"sinks": torch.zeros(3)}, "sinks must be float32 .4."),
        ({"sinks": torch.zeros(4).double()}, "sinks must be float32 .4."),
    ],
)
def test_refuses_what_does_not_fit(engine_of: Any, change: dict[str, Any], message: str) -> None:
    given_ = {
        "queries": torch.zeros(1, 4, 5, 16),
        "keys": torch.zeros(1, 2, 9, 16),
        "values": torch.zeros(1, 2, 9, 16),
    }
    with pytest.raises(ValueError, match=message):
        prompt_attention(engine_of(_core.choose_isa(""), 1), **(given_ | change))


def test_nothing_to_do(engine_of: Any) -> None:
    engine = engine_of(_core.choose_isa(""), 2)
    got = prompt_attention(engine, *(torch.zeros(1, 2, n, 16) for n in (0, 3, 3)))
    assert got.shape == (1, 0, 2, 16)
