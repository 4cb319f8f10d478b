"""Dense layers whose weight the engine quantised: the bytes are an expert's, and products what they say.

Where a row of the table keeps activations in bf16, x and (in tiles) the scaled weights are rounded to it:
2 u |W| |x| with u = 2^-8, as in test_format_kernels.py, which also explains what int8 activations lose.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import quantised
from blob_oracle import FORMATS, QUANTISED
from expert_layers import ISAS_WITH_BF16_DOT
from moerun import Engine, _core
from moerun.dense import Linear

SHAPES = ((1, 1), (33, 70), (130, 200), (40, 288))  # outputs, inputs
ALLOWED = 3 * 2.0**-8
INTEGER_LOSS = 0.01


@pytest.fixture(scope="module", params=_core.available_isas())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(isa=request.param, cpu_threads=2) as engine:
        yield engine


def random_weight(outputs: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(inputs).standard_normal((outputs, inputs)).astype(np.float32)


def bytes_of(linear: Linear) -> np.ndarray:
    """Codes, scales and zeros, as they lie in the blob."""
    return linear._blob


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_equals_the_dequantised_weight(engine: Engine, name: str, outputs: int, inputs: int) -> None:
    weight = random_weight(outputs, inputs)
    as_expert = quantised.quantise_matrix(weight, name)
    decoded = as_expert.weights(0)["gate"]
    bias = np.linspace(-1, 1, outputs, dtype=np.float32)
    linear = engine.add_linear(weight, bias, quant=name)
    assert (linear.format, linear.weight, linear.outputs, linear.inputs) == (name, None, outputs, inputs)
    for tokens in (1, 5, 40):
        x = np.random.default_rng(tokens).standard_normal((tokens, inputs)).astype(np.float32)
        got = linear.forward(x)
        expected = x.astype(np.float64) @ decoded.T + bias
        assert (np.abs(got - expected) <= ALLOWED * (np.abs(x) @ np.abs(decoded).T + np.abs(bias))).all()
        integers = engine.stats()["isa"] in ISAS_WITH_BF16_DOT and name.startswith("int8")
        loss = (INTEGER_LOSS if integers else 2 * 2.0**-8) * np.linalg.norm(expected)
        assert np.linalg.norm(got - expected) <= loss


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_bytes_are_those_of_an_expert(engine: Engine, name: str, outputs: int, inputs: int) -> None:
    """An expert's gate has them: codes first, then scales and zeros, of up's rows too."""
    weight = random_weight(outputs, inputs)
    as_expert = quantised.quantise_matrix(weight, name)
    layout, form = as_expert.layout, FORMATS[name]
    ours = bytes_of(engine.add_linear(weight, quant=name))
    at = 0
    for section in ("codes", "scales", *(("zeros",) if form.zeros else ())):
        theirs = layout.section(as_expert.blobs[0], f"gate_up_{section}")
        gate = theirs[: len(theirs) // 2]
        assert np.array_equal(ours[at : at + len(gate)], gate), section
        at += -(-len(gate) // 64) * 64
    assert not ours[at:].any()


@pytest.mark.parametrize("name", QUANTISED)
def test_strides_and_types_of_the_weight(engine: Engine, name: str) -> None:
    """Bytes depend on the numbers alone, and on no other memory."""
    weight = torch.from_numpy(random_weight(40, 72)).bfloat16()
    wide = torch.full((40, 144), torch.nan, dtype=torch.bfloat16)
    wide[:, ::2] = weight
    expected = bytes_of(engine.add_linear(weight, quant=name))
    for same in (weight.T.contiguous().T, wide[:, ::2], weight.float(), weight.float().numpy()):
        assert np.array_equal(bytes_of(engine.add_linear(same, quant=name)), expected)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_other_float_formats(engine: Engine, name: str) -> None:
    weight = torch.from_numpy(random_weight(33, 70)).bfloat16().float()  # exact in bf16, and here in fp16 too
    x = torch.randn(3, 70)
    linear = engine.add_linear(weight, quant=name)
    assert linear.format == name
    assert (linear.weight is None) == (name != "fp32")
    # x is not rounded for weights of another float format
    torch.testing.assert_close(linear.forward(x), engine.add_linear(weight).forward(x), rtol=1e-5, atol=1e-5)


def test_its_memory_is_its_own(engine: Engine) -> None:
    weight, x = torch.randn(8, 64), torch.randn(2, 64)
    linear = engine.add_linear(weight, quant="int8")
    before = linear.forward(x)
    weight.fill_(torch.nan)
    assert torch.equal(linear.forward(x), before)
    assert 8 * 64 <= linear.weight_bytes < 4 * weight.numel()


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_refuses_what_is_not_finite(engine: Engine, name: str, wrong: float) -> None:
    weight = random_weight(70, 100)
    weight[64, 99] = wrong
    with pytest.raises(ValueError, match=r"the matrix, row \d+.*: a weight is infinite or not a number") as e:
        engine.add_linear(weight, quant=name)
    row = 0 if FORMATS[name].block_rows > 1 else 64
    assert f"row {row}" in str(e.value)


def test_refuses_what_is_too_large_for_its_scales(engine: Engine) -> None:
    weight = random_weight(9, 64)
    weight[7, 3] = 3e38
    with pytest.raises(
        ValueError, match="the matrix, row 7: a weight is too large for the fp16 scales of int4"
    ):
        engine.add_linear(weight, quant="int4_g32")
    assert engine.add_linear(weight, quant="int8").format == "int8"


def test_refuses_unknown_formats() -> None:
    with Engine(cpu_threads=1) as engine, pytest.raises(ValueError, match=r"quant must be one of .*'int3'"):
        engine.add_linear(torch.ones(2, 2), quant="int3")
