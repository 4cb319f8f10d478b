"""Multi-head latent attention on every instruction set, against float64 with the bound that fp32 allows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_oracle import Batch
from expert_layers import ISAS_WITH_BF16_DOT
from latent_oracle import LatentModule, check_new, check_output
from moerun import Engine, _core
from moerun.dense import LatentAttention, LatentProjections
from moerun.dense.latent_attention import PAIRS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HIDDEN = 72
EngineOf = functools._lru_cache_wrapper  # (threads) -> Engine


def random_module(
    heads: int = 3,
    plain: int = 16,
    rotated: int = 8,
    value_dim: int = 24,
    rank: int = 40,
    query_rank: int | None = 20,
    dtype: torch.dtype = torch.float32,
    pairs: str = "halves",
    seed: int = 0,
) -> LatentModule:
    """Matrices whose results have a standard deviation of 1."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        return (torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(dtype)

    def norm(width: int) -> torch.Tensor:
        return torch.randn(width, generator=generator) * 0.3 + 1

    wide = heads * (plain + rotated)
    return LatentModule(
        matrix(wide if query_rank is None else query_rank, HIDDEN),
        matrix(rank + rotated, HIDDEN),
        matrix(heads * (plain + value_dim), rank),
        matrix(HIDDEN, heads * value_dim),
        heads,
        rotated,
        norm(rank),
        query_up=None if query_rank is None else matrix(wide, query_rank),
        query_norm=None if query_rank is None else norm(query_rank),
        pairs=pairs,
    )


def random_batch(
    module: LatentModule,
    sequences: int = 1,
    tokens: int = 1,
    past: int = 0,
    masked: bool = False,
    x_type: torch.dtype = torch.float32,
    cache_type: torch.dtype = torch.float32,
    spare: int = 3,
    seed: int = 0,
) -> Batch:
    """What lies behind the past in the cache is not a number."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.randn(sequences * tokens, module.rotated // 2, generator=generator) * 3
    angles = torch.cat((angles, angles), -1)
    caches = []
    for width in (module.rank, module.rotated):
        cache = torch.full((sequences, 1, past + tokens + spare, width), torch.nan)
        cache[:, :, :past] = torch.randn((sequences, 1, past, width), generator=generator)
        caches.append(cache.to(cache_type))
    mask = None
    if masked:
        mask = torch.rand(sequences, 1, tokens, past + tokens + spare, generator=generator) < 0.7
        mask[torch.rand(sequences, 1, tokens, generator=generator) < 0.1] = False  # padding sees nothing
    x = torch.randn(sequences, tokens, HIDDEN, generator=generator).to(x_type)
    return Batch(x, angles.cos(), angles.sin(), *caches, past, mask)


def check(engine: Engine, module: LatentModule, batch: Batch) -> None:
    """Runs a step and fails if anything that it wrote is wrong, or something else was written to."""
    before = batch.clone()
    got = batch.run(module.on(engine))
    for now, then in ((batch.keys, before.keys), (batch.values, before.values)):
        tokens = batch.x.shape[1]
        for kept in (slice(0, batch.past), slice(batch.past + tokens, None)):
            assert torch.equal(bits(now[:, :, kept]), bits(then[:, :, kept]))
    check_new(module, batch)
    in_bf16 = engine.stats()["isa"] in ISAS_WITH_BF16_DOT and batch.x.dtype == torch.bfloat16
    rounds = in_bf16 and module.output.dtype == torch.bfloat16
    check_output(module, batch, got, query_in_bf16=rounds, attended_in_bf16=rounds)


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


@settings(max_examples=15, deadline=None)
@given(
    threads=st.integers(1, 3),
    heads=st.integers(1, 13),
    plain=st.sampled_from((1, 16, 33)),
    rotated=st.sampled_from((2, 8, 18)),
    value_dim=st.sampled_from((5, 16, 24)),
    rank=st.sampled_from((1, 16, 40, 64)),
    query_rank=st.sampled_from((None, 20, 64)),
    past=st.sampled_from((0, 1, 254, 256, 600)) | st.integers(0, 700),
    tokens=st.integers(1, 5),
    sequences=st.integers(1, 3),
    masked=st.booleans(),
    pairs=st.sampled_from(PAIRS),
    dtype=dtypes,
    x_type=dtypes,
    cache_type=dtypes,
    seed=st.integers(0, 2**16),
)
def test_equals_float64(
    engine_of: EngineOf,
    threads: int,
    heads: int,
    plain: int,
    rotated: int,
    value_dim: int,
    rank: int,
    query_rank: int | None,
    past: int,
    tokens: int,
    sequences: int,
    masked: bool,
    pairs: str,
    dtype: torch.dtype,
    x_type: torch.dtype,
    cache_type: torch.dtype,
    seed: int,
) -> None:
    module = random_module(heads, plain, rotated, value_dim, rank, query_rank, dtype, pairs, seed)
    batch = random_batch(module, sequences, tokens, past, masked, x_type, cache_type, seed=seed)
    check(engine_of(threads), module, batch)


@pytest.mark.parametrize("tokens", [1, 70])
def test_more_heads_than_are_attended_together(engine_of: EngineOf, tokens: int) -> None:
    module = random_module(heads=66, query_rank=None)
    check(engine_of(1), module, random_batch(module, sequences=2, tokens=tokens, past=300))


def test_nothing_is_left_of_an_earlier_batch(engine_of: EngineOf) -> None:
    """Memory is used again, and rows that do not fill vectors have gaps."""
    wide, narrow = random_module(heads=4, rank=64), random_module(heads=3, rank=40)
    poison = random_batch(wide, tokens=4, past=10)
    poison.x.fill_(torch.nan)
    assert poison.run(wide.on(engine_of(1))).isnan().all()
    check(engine_of(1), narrow, random_batch(narrow, tokens=3, past=10))


def test_threads_change_roundings_at_most(engine_of: EngineOf) -> None:
    module = random_module(heads=12, pairs="neighbours")
    batch = random_batch(module, past=600, tokens=2)
    for threads in (1, 2, 3):
        check(engine_of(threads), module, batch.clone())


def test_quantised_projections() -> None:
    """All but the one that is read by columns; as if weights were what the format makes of them."""
    module = random_module(heads=4)
    batch = random_batch(module, past=20)
    with Engine(cpu_threads=1, isa="ref") as engine:
        linears = {
            name: engine.add_linear(getattr(module, name), None, None if name == "expand" else "int8")
            for name in LatentProjections._fields
        }
        attention = LatentAttention(
            engine,
            LatentProjections(**linears),
            module.heads,
            module.rotated,
            module.latent_norm,
            query_norm=module.query_norm,
            epsilon=module.epsilon,
        )
        got = batch.run(attention)
        read = {name: linear.forward(torch.eye(linear.inputs)).T for name, linear in linears.items()}
        linears["expand"] = engine.add_linear(module.expand, None, "int8")
        quantised = LatentProjections(**linears)
        with pytest.raises(ValueError, match="expand must not be quantised"):
            LatentAttention(engine, quantised, module.heads, module.rotated, module.latent_norm)
    expected = replace(module, **read)
    check_new(expected, batch)
    check_output(expected, batch, got, query_in_bf16=False, attended_in_bf16=False)


def test_refuses_what_does_not_fit() -> None:
    with Engine(cpu_threads=1) as engine:
        module = random_module()
        for wrong in (
            replace(module, heads=5),
            replace(module, heads=0),
            replace(module, rotated=24),
            replace(module, rotated=7),
            replace(module, expand=module.expand[:-1]),
            replace(module, output=module.output[:, :-1]),
            replace(module, latent=module.latent[:, :-1]),
        ):
            with pytest.raises(ValueError, match=r"do not make latent attention of \d+ heads"):
                wrong.on(engine)
        with pytest.raises(ValueError, match="query and latent must have one number format, got fp32, fp16"):
            replace(module, latent=module.latent.half()).on(engine)
        with pytest.raises(ValueError, match="pairs must be one of halves, neighbours, neighbours_to_halves"):
            replace(module, pairs="thirds").on(engine)
        with pytest.raises(ValueError, match="query_norm and query_up belong together"):
            replace(module, query_norm=None).on(engine)
        with pytest.raises(ValueError, match=r"latent_norm must be \[40\], got \[39\]"):
            replace(module, latent_norm=torch.ones(39)).on(engine)
        batch = random_batch(module, past=5)
        keys = r"keys and values must be \[1, 1, at least 6, 40\] and \[..., 8\]"
        for changes in (
            {"keys": batch.keys[..., :-1]},
            {"values": batch.values[:, :, :-1]},
            {"values": batch.values.half()},
            {"keys": batch.keys[:, :, :5], "values": batch.values[:, :, :5]},
        ):
            with pytest.raises(ValueError, match=keys):
                replace(batch, **changes).run(module.on(engine))
        with pytest.raises(ValueError, match=r"cos and sin must be float32 \[1, 8\]"):
            replace(batch, cos=batch.cos[:, :4], sin=batch.sin[:, :4]).run(module.on(engine))
