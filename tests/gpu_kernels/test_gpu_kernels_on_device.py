"""The GPU kernels on a GPU against the float64 oracle: the interpreter's cases, compiled and run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interpreted import run
from test_gpu_kernel_numerics import REGIMES, Case, cover, make_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]


def on_device(case: Case) -> Case:
    major, minor = torch.cuda.get_device_capability()
    return replace(case, step=replace(case.step, architecture=10 * major + minor))


@pytest.mark.parametrize(("weight_format", "x_dtype", "regime", "activation", "bias", "size"), cover())
def test_equals_float64(
    weight_format: str, x_dtype: str, regime: str, activation: str, bias: bool, size: tuple[int, int]
) -> None:
    case = on_device(make_case(weight_format, x_dtype, activation, bias, size, regime=regime))
    case.expected().check(run(case.step, "cuda"))


@pytest.mark.parametrize("regime", REGIMES)
def test_many_tokens_and_several_launches(regime: str) -> None:
    case = on_device(make_case("int4_g32", tokens=200, size=(288, 160), regime=regime))
    out = run(case.step, "cuda")
    case.expected().check(out)
    assert torch.equal(run(replace(case.step, launches=(1, 2)), "cuda"), out)


def test_no_pair_at_all() -> None:
    case = on_device(make_case("bf16"))
    out = run(replace(case.step, ids=case.step.ids * 0 - 1), "cuda")
    assert (out == 0).all()
