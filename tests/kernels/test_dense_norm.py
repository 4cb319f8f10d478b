"""RMS norms on every instruction set, against float64 with the bound that fp32 allows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from attention_oracle import Near, normalised
from moerun import Engine, _core
from moerun.dense import RmsNorm

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 65, 200, 2048, 2881)


@pytest.fixture(scope="module", params=_core.available_isas())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(isa=request.param, cpu_threads=3) as engine:
        yield engine


def check(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """Fails if `got` [rows, width] is further from the formula than fp32 and one rounding allow."""
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    exact = Near(x.double(), torch.zeros_like(x, dtype=torch.float64))
    normalised(exact, weight, epsilon).expected().check(got)


@pytest.mark.parametrize("x_type", DTYPES)
@pytest.mark.parametrize("weight_type", DTYPES)
def test_equals_float64(engine: Engine, weight_type: torch.dtype, x_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for width in WIDTHS:
        weight = (torch.randn(width, generator=generator) + 1).to(weight_type)
        x = (torch.randn(5, width, generator=generator) * 3).to(x_type)
        x[1] *= 1e-3
        check(RmsNorm(engine, weight, 1e-6).forward(x), x, weight, 1e-6)


@pytest.mark.parametrize("rows", [1, 63, 5000])
def test_many_rows(engine: Engine, rows: int) -> None:
    """More than a thread takes alone."""
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(40, generator=generator), torch.randn(rows, 40, generator=generator)
    check(RmsNorm(engine, weight, 1e-5).forward(x), x, weight, 1e-5)


def test_zeros_and_what_is_not_a_number(engine: Engine) -> None:
    norm = RmsNorm(engine, torch.ones(33), 1e-6)
    x = torch.zeros(3, 33)
    x[1, 32] = torch.nan
    got = norm.forward(x)
    assert torch.equal(got[[0, 2]], torch.zeros(2, 33))
    assert got[1].isnan().all()


def test_kinds_and_shapes_of_x() -> None:
    with Engine(cpu_threads=1) as engine:
        norm = RmsNorm(engine, torch.rand(8), 1e-6)
        assert norm.forward(torch.randn(2, 3, 8)).shape == (2, 3, 8)
        assert norm.forward(torch.randn(8)).shape == (8,)
        assert norm.forward(torch.randn(0, 8)).shape == (0, 8)
        heads = torch.randn(2, 4, 3, 8).transpose(1, 2)
        assert torch.equal(norm.forward(heads), norm.forward(heads.contiguous()))
        every_other = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)[:, ::2]
        assert np.array_equal(norm.forward(every_other), norm.forward(every_other.copy()))


def test_its_weight_is_a_copy() -> None:
    with Engine(cpu_threads=1) as engine:
        weight, x = torch.ones(8), torch.randn(2, 8)
        norm = RmsNorm(engine, weight, 1e-6)
        before = norm.forward(x)
        weight.zero_()
        assert torch.equal(norm.forward(x), before)


def test_refuses_what_does_not_fit() -> None:
    with Engine(cpu_threads=1) as engine:
        with pytest.raises(ValueError, match=r"weight must be \[width\], got \[2, 2\]"):
            RmsNorm(engine, torch.ones(2, 2), 1e-6)
        with pytest.raises(ValueError, match=r"weight must be \[width\], got \[0\]"):
            RmsNorm(engine, torch.ones(0), 1e-6)
        norm = RmsNorm(engine, torch.ones(8), 1e-6)
        with pytest.raises(ValueError, match=r"x must be \[\.\.\., 8\], got \[3, 7\]"):
            norm.forward(torch.ones(3, 7))
        with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
            norm.forward(torch.ones(3, 8, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="closed"):
        norm.forward(torch.ones(3, 8))
