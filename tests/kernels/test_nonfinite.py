"""NaN and infinity reach the outputs that depend on them, and nothing else; what lies in padding reaches
none."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch

import expert_layers
from expert_layers import ALL_ISAS, DTYPES, LAYOUTS, Routed
from oracle import Experts

HIDDEN, INTER = 45, 37  # padding behind both
ROWS_AND_PANEL = [3, 16]  # tokens: each of the two kernels
NONFINITE = [math.nan, math.inf, -math.inf]


def forward(isa: str, layout: str, experts: Experts, batch: Routed) -> torch.Tensor:
    with expert_layers.engine_for(isa) as engine:
        memory = expert_layers.memory_of(experts, layout)
        return engine.add_layer(expert_layers.spec_of(experts), memory).forward(*batch)


@functools.lru_cache
def clean_case(tokens: int, dtype: torch.dtype) -> tuple[Experts, Routed]:
    """Even tokens go to experts 0 and 1, odd ones to 0 and 2."""
    experts = expert_layers.random_experts(3, HIDDEN, INTER, dtype, seed=11)
    batch = expert_layers.random_batch(tokens, HIDDEN, 3, top_k=2, dtype=dtype, seed=12)
    ids = torch.tensor([[0, 1 + t % 2] for t in range(tokens)])
    return experts, Routed(batch.x, ids, batch.weights)


def check_spread(got: torch.Tensor, clean: torch.Tensor, reached: torch.Tensor) -> None:
    """`reached` outputs are not finite; all others are what they were, bit for bit."""
    assert not got[reached].isfinite().any()
    assert torch.equal(got[~reached], clean[~reached])


@pytest.mark.parametrize("tokens", ROWS_AND_PANEL)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_one_bad_number(isa: str, dtype: str, layout: str, tokens: int) -> None:
    experts, batch = clean_case(tokens, DTYPES[dtype])
    clean = forward(isa, layout, experts, batch)
    nothing = torch.zeros(clean.shape, dtype=torch.bool)
    odd_tokens = torch.arange(tokens) % 2 == 1
    for bad in NONFINITE:

        def spoiled(tensor: torch.Tensor, *where: int, bad: float = bad) -> torch.Tensor:
            copy = tensor.clone()
            copy[where] = bad
            return copy

        reached = nothing.clone()
        reached[2] = True
        x = spoiled(batch.x, 2, HIDDEN - 1)
        check_spread(forward(isa, layout, experts, dataclasses.replace(batch, x=x)), clean, reached)
        weights = spoiled(batch.weights, 2, 1)
        check_spread(
            forward(isa, layout, experts, dataclasses.replace(batch, weights=weights)), clean, reached
        )

        reached = odd_tokens[:, None].expand(clean.shape)
        for name in (
            ("gate", "up") if math.isnan(bad) else ("up",)
        ):  # an activation may turn infinity into zero
            changed = dataclasses.replace(experts, **{name: spoiled(getattr(experts, name), 2, INTER - 1, 0)})
            check_spread(forward(isa, layout, changed, batch), clean, reached)

        reached = nothing.clone()
        reached[odd_tokens, HIDDEN - 1] = True
        changed = dataclasses.replace(experts, down=spoiled(experts.down, 2, HIDDEN - 1, INTER - 1))
        check_spread(forward(isa, layout, changed, batch), clean, reached)


@pytest.mark.parametrize("activation", expert_layers.ACTIVATIONS)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_nan_passes_every_activation(isa: str, activation: str) -> None:
    experts = expert_layers.random_experts(2, HIDDEN, INTER, activation=activation)
    batch = expert_layers.random_batch(9, HIDDEN, 2, top_k=1)
    for name in ("gate", "up"):
        spoiled = getattr(experts, name).clone()
        spoiled[:, 5, 7] = math.nan
        got = forward(isa, "rows", dataclasses.replace(experts, **{name: spoiled}), batch)
        assert got.isnan().all(), name


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_very_large_gates_saturate(isa: str) -> None:
    """silu(g) is g far above zero and 0 far below, where exp(-g) overflows in fp32."""
    gates = torch.tensor([88.0, 89.0, 104.0, 1e4, 1e30])
    gates = torch.cat([gates, -gates])
    one = torch.ones(1, 1, 1)
    with expert_layers.engine_for(isa) as engine:
        for activation in ("silu", "gelu", "gelu_tanh"):
            memory = expert_layers.memory_of(Experts(one, torch.zeros(1, 1, 1), one, activation), "rows")
            memory = dataclasses.replace(memory, up_bias=torch.ones(1, 1).numpy())
            layer = engine.add_layer(expert_layers.spec_of(Experts(one, one, one, activation)), memory)
            ids, weights = torch.zeros(len(gates), 1, dtype=torch.int64), torch.ones(len(gates), 1)
            got = layer.forward(gates[:, None], ids, weights)[:, 0]
            expected = torch.where(gates > 0, gates, 0.0)
            assert torch.allclose(got, expected, rtol=1e-6, atol=1e-7), (activation, got)


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_skipped_ids_bring_nothing_along(isa: str) -> None:
    experts, batch = clean_case(16, torch.float32)
    x, ids, weights = batch.x.clone(), batch.ids.clone(), batch.weights.clone()
    x[4] = math.nan
    ids[4] = torch.tensor([-1, 3])  # no expert at all
    weights[5, 1] = math.nan
    ids[5, 1] = 2**31 - 1
    got = forward(isa, "rows", experts, Routed(x, ids, weights))
    assert (got[4] == 0).all()
    assert got.isfinite().all()


@pytest.mark.parametrize("tokens", ROWS_AND_PANEL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_garbage_around_the_arrays_is_ignored(isa: str, dtype: str, tokens: int) -> None:
    """NaN between the rows of x and of the weights, and in the workspace that earlier batches left behind."""
    experts, batch = clean_case(tokens, DTYPES[dtype])
    clean = forward(isa, "rows", experts, batch)
    spec = expert_layers.spec_of(experts)

    def in_nan(tensor: torch.Tensor) -> torch.Tensor:
        """A view of a larger tensor whose other elements are NaN."""
        padded = torch.full([n + 3 for n in tensor.shape], math.nan, dtype=tensor.dtype)
        view = padded[tuple(slice(1, n + 1) for n in tensor.shape)]
        view.copy_(tensor)
        return view

    with expert_layers.engine_for(isa) as engine:
        wide = torch.full((2, 3 * HIDDEN, 3 * HIDDEN), math.nan, dtype=DTYPES[dtype])
        wide_spec = dataclasses.replace(
            spec, num_experts=1, hidden_size=3 * HIDDEN, intermediate_size=3 * HIDDEN
        )
        spoiler = engine.add_layer(wide_spec, {"gate_up": wide.view(1, 6 * HIDDEN, -1), "down": wide[:1]})
        ids, weights = torch.zeros(64, 1, dtype=torch.int64), torch.ones(64, 1)
        assert spoiler.forward(wide[0, :64], ids, weights).isnan().all()

        tensors = {name: in_nan(tensor) for name, tensor in expert_layers.tensors_of(experts).items()}
        layer = engine.add_layer(spec, tensors)
        out = in_nan(torch.empty(tokens, HIDDEN, dtype=DTYPES[dtype]))
        layer.forward(*(in_nan(t) if t.is_floating_point() else t for t in batch), out=out)
        assert torch.equal(out, clean)
        around = torch.as_strided(out, (tokens + 3, HIDDEN + 3), (HIDDEN + 3, 1), 0)
        assert int(around.isnan().sum()) == around.numel() - out.numel()
