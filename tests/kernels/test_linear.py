"""Dense linear layers on every instruction set, against float64 with the bound that fp32 sums allow."""

from __future__ import annotations

import pytest
import torch

from moerun import Engine, _core
from oracle import LAMBDA, SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, of_sums

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((33, 70), (1, 1), (300, 128), (64, 2880))  # outputs, inputs


def check(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Fails if `got` is further from x @ weight.T + bias than fp32 sums and one rounding may be."""
    x, w = x.double(), weight.double()
    b = torch.zeros(len(w)).double() if bias is None else bias.double()
    expected, magnitude = x @ w.T + b, x.abs() @ w.abs().T + b.abs()
    error = of_sums(w.shape[1] + 1, magnitude)
    bound = torch.minimum(error.worst, LAMBDA * error.sigma)
    bound = bound + UNIT_ROUNDOFF[got.dtype] * (expected.abs() + bound) + SMALLEST_SUBNORMAL[got.dtype]
    assert got.shape == expected.shape
    assert ((got.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_equals_float64(isa: str, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    with Engine(isa=isa, cpu_threads=2) as engine:
        plain, biased = engine.add_linear(weight), engine.add_linear(weight, bias)
        for tokens in (1, 3, 12, 13, 40):
            x = torch.randn(tokens, inputs, generator=generator).to(dtype)
            check(plain.forward(x), x, weight, None)
            check(biased.forward(x), x, weight, bias)


def test_shapes_of_x() -> None:
    weight = torch.randn(5, 8)
    with Engine(cpu_threads=1) as engine:
        linear = engine.add_linear(weight)
        assert linear.forward(torch.randn(2, 3, 8)).shape == (2, 3, 5)
        assert linear.forward(torch.randn(8)).shape == (5,)
        assert linear.forward(torch.randn(0, 8)).shape == (0, 5)
        every_other = torch.randn(4, 16)[:, ::2]
        check(linear.forward(every_other), every_other, weight, None)
        assert linear.forward(every_other.numpy()).shape == (4, 5)


def test_refuses_what_does_not_fit() -> None:
    with Engine(cpu_threads=1) as engine:
        with pytest.raises(ValueError, match=r"weight must be \[outputs, inputs\]"):
            engine.add_linear(torch.randn(3))
        with pytest.raises(ValueError, match=r"bias must be \[3\]"):
            engine.add_linear(torch.randn(3, 4), torch.randn(4))
        linear = engine.add_linear(torch.randn(3, 4))
        with pytest.raises(ValueError, match=r"x must be \[\.\.\., 4\]"):
            linear.forward(torch.randn(2, 5))
        with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
            linear.forward(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="closed"):
        linear.forward(torch.randn(2, 4))
