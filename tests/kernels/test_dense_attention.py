"""Attention of a few tokens on every instruction set, against float64 with the bound that fp32 allows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_oracle import Batch, Module, check_new, check_output
from expert_layers import ISAS_WITH_BF16_DOT
from moerun import Engine, _core
from moerun.dense import HeadNorm

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HIDDEN = 72
EngineOf = functools._lru_cache_wrapper  # (isa, threads) -> Engine


def random_module(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    norm: str | None = None,
    bias: bool = False,
    clip: float | None = None,
    sinks: bool = False,
    seed: int = 0,
) -> Module:
    """Projections whose results have a standard deviation of 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    query, key, value = (normal(width, HIDDEN, scale=HIDDEN**-0.5).to(dtype) for width in widths)
    norms = None
    if norm is not None:
        lengths = widths[:2] if norm == "row" else (head_dim, head_dim)
        norms = HeadNorm(*(normal(length, scale=0.3) + 1 for length in lengths), epsilon=1e-5)
    return Module(
        query,
        key,
        value,
        normal(HIDDEN, widths[0], scale=widths[0] ** -0.5).to(dtype),
        head_dim,
        biases=tuple(normal(width, scale=0.3).to(dtype) for width in widths) if bias else None,
        norm=norms,
        clip=clip,
        sinks=normal(heads) if sinks else None,
    )


def random_batch(
    module: Module,
    sequences: int = 1,
    tokens: int = 1,
    past: int = 0,
    rotated: int | None = None,
    masked: bool = False,
    added: torch.dtype | None = None,
    x_type: torch.dtype = torch.float32,
    cache_type: torch.dtype = torch.float32,
    spare: int = 3,
    seed: int = 0,
) -> Batch:
    """What lies behind the past in the cache is not a number."""
    generator = torch.Generator().manual_seed(seed)
    rotated = module.head_dim if rotated is None else rotated
    angles = torch.randn(sequences * tokens, rotated // 2, generator=generator) * 3
    angles = torch.cat((angles, angles), -1)
    cache = torch.full((2, sequences, module.kv_heads, past + tokens + spare, module.head_dim), torch.nan)
    cache[:, :, :, :past] = torch.randn(
        (2, sequences, module.kv_heads, past, module.head_dim), generator=generator
    )
    keys, values = cache.to(cache_type)
    mask = None
    if masked:
        mask = torch.rand(sequences, 1, tokens, past + tokens + spare, generator=generator) < 0.7
        mask[torch.rand(sequences, 1, tokens, generator=generator) < 0.1] = False  # padding sees nothing
    if added is not None:
        numbers = torch.randn(sequences, 1, tokens, past + tokens + spare, generator=generator).to(added)
        mask = numbers if mask is None else numbers.where(mask, torch.finfo(added).min)
    x = torch.randn(sequences, tokens, HIDDEN, generator=generator).to(x_type)
    return Batch(x, angles.cos(), angles.sin(), keys, values, past, mask)


def check(engine: Engine, module: Module, batch: Batch) -> None:
    """Runs a step and fails if anything that it wrote is wrong, or something else was written to."""
    before = batch.clone()
    got = batch.run(module.on(engine))
    for now, then in ((batch.keys, before.keys), (batch.values, before.values)):
        tokens = batch.x.shape[1]
        for kept in (slice(0, batch.past), slice(batch.past + tokens, None)):
            assert torch.equal(bits(now[:, :, kept]), bits(then[:, :, kept]))
    check_new(module, batch)
    in_bf16 = engine.stats()["isa"] in ISAS_WITH_BF16_DOT and batch.x.dtype == torch.bfloat16
    check_output(module, batch, got, attended_in_bf16=in_bf16 and module.output.dtype == torch.bfloat16)


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8)


@pytest.fixture(scope="module", params=_core.available_isas())
def engine_of(request: pytest.FixtureRequest) -> Iterator[EngineOf]:
    """engine_of(threads) on one instruction set."""
    made: list[Engine] = []

    @functools.cache
    def engine(threads: int) -> Engine:
        made.append(Engine(isa=request.param, cpu_threads=threads))
        return made[-1]

    yield engine
    for one in made:
        one.close()


dtypes = st.sampled_from(DTYPES)


@settings(max_examples=12, deadline=None)
@given(
    threads=st.integers(1, 3),
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from((16, 40, 64, 80, 128)),
    past=st.sampled_from((0, 1, 254, 256, 600)) | st.integers(0, 700),
    tokens=st.integers(1, 5),
    sequences=st.integers(1, 3),
    masked=st.booleans(),
    added=st.none() | st.sampled_from(DTYPES),
    norm=st.sampled_from((None, "head", "row")),
    bias=st.booleans(),
    clip=st.sampled_from((None, 0.8)),
    sinks=st.booleans(),
    share=st.sampled_from((1, 2)),
    weight_type=dtypes,
    output_type=dtypes,
    x_type=dtypes,
    cache_type=dtypes,
    seed=st.integers(0, 2**16),
)
def test_equals_float64(
    engine_of: EngineOf,
    threads: int,
    group: int,
    kv_heads: int,
    head_dim: int,
    past: int,
    tokens: int,
    sequences: int,
    masked: bool,
    added: torch.dtype | None,
    norm: str | None,
    bias: bool,
    clip: float | None,
    sinks: bool,
    share: int,
    weight_type: torch.dtype,
    output_type: torch.dtype,
    x_type: torch.dtype,
    cache_type: torch.dtype,
    seed: int,
) -> None:
    module = random_module(group * kv_heads, kv_heads, head_dim, weight_type, norm, bias, clip, sinks, seed)
    module = replace(module, output=module.output.to(output_type))
    batch = random_batch(
        module, sequences, tokens, past, head_dim // share, masked, added, x_type, cache_type, seed=seed
    )
    check(engine_of(threads), module, batch)


@pytest.mark.parametrize(("tokens", "past"), [(300, 300), (600, 3)])
def test_many_new_tokens_for_one_head(engine_of: EngineOf, tokens: int, past: int) -> None:
    """Its keys are shared out among threads, none of which may read what another has yet to write."""
    module = random_module(heads=1, kv_heads=1, head_dim=16)
    check(engine_of(3), module, random_batch(module, tokens=tokens, past=past))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_left_of_an_earlier_batch(engine_of: EngineOf, dtype: torch.dtype) -> None:
    """Memory is used again, and rows of heads that do not fill vectors have gaps."""
    wide, narrow = random_module(2, 1, 128, dtype), random_module(1, 1, 40, dtype)
    poison = random_batch(wide, tokens=4, past=10, x_type=dtype)
    assert poison.x.fill_(torch.nan).isnan().all()
    assert poison.run(wide.on(engine_of(1))).isnan().all()
    check(engine_of(1), narrow, random_batch(narrow, tokens=3, past=10, x_type=dtype))


@pytest.mark.parametrize("past", [100, 800])
def test_threads_change_roundings_at_most(engine_of: EngineOf, past: int) -> None:
    """Bit for bit the same where no head's keys are split, which needs more threads than heads."""
    module = random_module(heads=8, kv_heads=4, head_dim=64, norm="head")
    batch = random_batch(module, past=past, tokens=2)
    results = [batch.clone().run(module.on(engine_of(threads))) for threads in (1, 2, 3)]
    for result in results:
        assert torch.equal(result, results[0])
    alone = random_module(heads=8, kv_heads=1, head_dim=64, norm="head")
    for threads in (1, 2, 3):
        check(engine_of(threads), alone, random_batch(alone, past=past, tokens=2))


def test_the_same_from_run_to_run(engine_of: EngineOf) -> None:
    module = random_module(heads=4, kv_heads=1, head_dim=40)
    batch = random_batch(module, past=800, tokens=2, masked=True)
    results = [batch.clone().run(module.on(engine_of(3))) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_scores_of_any_size(engine_of: EngineOf, scale: float) -> None:
    """Far apart, they leave one key; maxima that come late scale down what was summed before."""
    module = replace(random_module(heads=4, kv_heads=2, head_dim=64), scale=scale)
    batch = random_batch(module, past=900)
    batch.keys[:, :, : batch.past] *= torch.linspace(0.1, 2, batch.past)[:, None]
    check(engine_of(2), module, batch)


def test_one_head_sees_what_the_mask_shows(engine_of: EngineOf) -> None:
    """A key that no token sees may hold any finite number."""
    module = random_module(heads=2, kv_heads=1, head_dim=16)
    batch = random_batch(module, sequences=2, tokens=2, past=700, masked=True)
    assert batch.mask is not None
    batch.mask[0, :, :, :300] = False
    other = batch.clone()
    other.keys[0, :, :300], other.values[0, :, :300] = 1e4, -1e4
    attention = module.on(engine_of(2))
    assert torch.equal(batch.run(attention), other.run(attention))


def test_an_empty_batch() -> None:
    with Engine(cpu_threads=1) as engine:
        module = random_module(heads=2, kv_heads=1, head_dim=16)
        assert random_batch(module, sequences=0).run(module.on(engine)).shape == (0, HIDDEN)
        assert random_batch(module, tokens=0, past=3).run(module.on(engine)).shape == (0, HIDDEN)


def test_arrays_of_numpy() -> None:
    with Engine(cpu_threads=1) as engine:
        module = random_module(heads=2, kv_heads=1, head_dim=16)
        batch = random_batch(module, tokens=2, past=5, masked=True)
        arrays = (batch.x, batch.cos, batch.sin, batch.keys.clone(), batch.values.clone())
        assert batch.mask is not None
        attention = module.on(engine)
        got = attention.forward(*(a.numpy() for a in arrays), batch.past, batch.mask.numpy())
        assert torch.equal(torch.from_numpy(got).flatten(0, 1), batch.run(attention))


def test_refuses_projections_that_do_not_fit() -> None:
    with Engine(cpu_threads=1) as engine:
        module = random_module(heads=4, kv_heads=2, head_dim=16)
        for wrong in (
            replace(module, head_dim=24),
            replace(module, head_dim=0),
            replace(module, value=module.value[:16]),
            replace(module, key=module.key[:, :8]),
            replace(module, output=module.output[:, :16]),
            replace(module, query=module.query[:48]),  # three heads for two
        ):
            with pytest.raises(ValueError, match=r"projections .* do not make attention with heads of"):
                wrong.on(engine)
        with pytest.raises(ValueError, match="query, key and value must have one number format"):
            replace(module, key=module.key.half()).on(engine)
        with pytest.raises(ValueError, match=r"norm.query must be \[64\], got \[63\]"):
            replace(module, norm=HeadNorm(torch.ones(63), torch.ones(32), 1e-6)).on(engine)
        with pytest.raises(ValueError, match=r"norm.key must be \[16\], got \[32\]"):
            replace(module, norm=HeadNorm(torch.ones(16), torch.ones(32), 1e-6)).on(engine)
        with pytest.raises(ValueError, match=r"sinks must be \[4\], got \[3\]"):
            replace(module, sinks=torch.ones(3)).on(engine)


def test_refuses_batches_that_do_not_fit() -> None:
    with Engine(cpu_threads=1) as engine:
        module = random_module(heads=4, kv_heads=2, head_dim=16)
        attention = module.on(engine)
        batch = random_batch(module, sequences=2, tokens=3, past=5, masked=True, spare=0)
        assert batch.mask is not None

        def refused(match: str, **changes: object) -> None:
            with pytest.raises(ValueError, match=match):
                replace(batch, **changes).run(attention)

        refused(r"x must be \[sequences, tokens, 72\], got \[2, 3, 71\]", x=batch.x[:, :, 1:])
        refused(r"x must be \[sequences, tokens, 72\]", x=batch.x[0])
        refused("x must be float32, float16 or bfloat16, got int64", x=batch.x.long())
        refused(r"cos and sin must be float32 \[6, even, at most 16\]", cos=batch.cos[1:])
        refused(r"cos and sin must be", sin=batch.sin[:, :8])
        refused(r"cos and sin must be", cos=batch.cos.double())
        refused(r"cos and sin must be", sin=batch.sin.bfloat16())
        refused(r"cos and sin must be", cos=batch.cos[0], sin=batch.sin[0])
        refused(r"cos and sin must be", cos=batch.cos[:, :15], sin=batch.sin[:, :15])
        refused(r"cos and sin must be", cos=batch.cos.T.contiguous().T)
        wide = torch.ones(6, 32)
        refused(r"cos and sin must be", cos=wide, sin=wide)
        refused(r"keys and values must be \[2, 2, at least 9, 16\]", past=6)
        keys = r"keys and values must be \[2, 2, at least 8, 16\] and .* of one float type with contiguous"
        refused(keys, keys=batch.keys[:1])
        refused(keys, values=batch.values.half())
        refused(keys, keys=batch.keys.transpose(2, 3).contiguous().transpose(2, 3))
        refused("past must not be negative, got -1", past=-1)
        refused(r"mask must be \[2, 1, 3, 8\] with contiguous rows", mask=batch.mask[..., 1:])
        refused(r"mask must be \[2, 1, 3, 8\]", mask=batch.mask[:1])
        refused("a mask that is not bool must be float32, float16 or bfloat16", mask=batch.mask.long())
    with pytest.raises(RuntimeError, match="closed"):
        batch.run(attention)
