"""Conversions of activations and outputs: every number is rounded to nearest even, as torch does.

There is no call for the conversion alone; a layer of one expert that computes the identity shows it: act is
relu2 of a gate that is 1, up and down are unit matrices.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import expert_layers
import moerun
from expert_layers import ALL_ISAS, DTYPES

WIDTH = 72


def identity_layer(engine: moerun.Engine, width: int) -> moerun.Layer:
    unit = torch.eye(width)[None]
    bias = torch.cat([torch.ones(1, width), torch.zeros(1, width)], dim=1)
    spec = moerun.LayerSpec(1, width, width, top_k=1, activation="relu2", bias=True)
    tensors = {"gate_up": torch.cat([0 * unit, unit], dim=1), "down": unit}
    return engine.add_layer(spec, tensors | {"gate_up_bias": bias, "down_bias": torch.zeros(1, width)})


def converted(isa: str, numbers: torch.Tensor, out: torch.dtype, weight: float = 1.0) -> torch.Tensor:
    """`numbers` [n], n a multiple of WIDTH, times the routing weight, through the engine into `out`."""
    with expert_layers.engine_for(isa) as engine:
        layer = identity_layer(engine, WIDTH)
        x = numbers.view(-1, WIDTH)
        ids = torch.zeros(len(x), 1, dtype=torch.int32)
        got = layer.forward(x, ids, torch.full((len(x), 1), weight), out=torch.empty(x.shape, dtype=out))
    return got.flatten()


def whole_rows(numbers: torch.Tensor) -> torch.Tensor:
    return torch.cat([numbers, numbers.new_zeros(-len(numbers) % WIDTH)])


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_every_finite_16_bit_number(isa: str, source: str, out: str) -> None:
    numbers = torch.from_numpy(np.arange(1 << 16).astype(np.uint16)).view(DTYPES[source])
    numbers = whole_rows(numbers[numbers.isfinite()])
    # Zeros that are added to a sum lose their sign; == does not see it.
    assert (converted(isa, numbers, DTYPES[out]) == numbers.to(DTYPES[out])).all()


def numbers_around_ties(narrow: torch.dtype) -> torch.Tensor:
    """fp32 numbers at, just below and just above the middle between neighbours of a narrow format, of all
    sizes."""
    bits = torch.from_numpy(np.arange(1 << 16).astype(np.uint16)).view(narrow)
    low = bits[bits.isfinite()].float()
    low = low[low >= 0].sort().values
    middle = ((low[1:].double() + low[:-1].double()) / 2).float()
    above = torch.nextafter(middle, torch.tensor(math.inf))
    below = torch.nextafter(middle, torch.tensor(-math.inf))
    largest = low[-1] + (low[-1] - low[-2]) / 2  # rounds to infinity, and what is below does not
    edge = torch.stack([largest, torch.nextafter(largest, torch.tensor(0.0)), torch.tensor(3.4e38)])
    positive = torch.cat([middle, above, below, edge])
    return torch.cat([positive, -positive])


@pytest.mark.parametrize("out", ["fp16", "bf16"])
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_fp32_rounds_to_nearest_even(isa: str, out: str) -> None:
    numbers = whole_rows(numbers_around_ties(DTYPES[out]))
    expected = numbers.to(DTYPES[out])
    assert expected.isinf().any()
    assert ((expected != 0) & (expected.abs() < torch.finfo(DTYPES[out]).tiny)).any()
    got = converted(isa, numbers, DTYPES[out])
    wrong = got != expected
    assert not wrong.any(), list(zip(numbers[wrong][:5].tolist(), got[wrong][:5].tolist(), strict=True))


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_infinity_and_nan(isa: str, out: str) -> None:
    numbers = whole_rows(torch.linspace(-3, 3, 2 * WIDTH))
    assert torch.equal(converted(isa, numbers, DTYPES[out], math.inf), (numbers * math.inf).to(DTYPES[out]))
    assert converted(isa, numbers, DTYPES[out], math.nan).isnan().all()
