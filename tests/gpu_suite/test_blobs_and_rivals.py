"""What kernels are checked against and compared with on a GPU: decoded weights, and torch's own ways."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu.blobs import expert_values, random_blobs
from bench.gpu.expert_step import TOLERANCE, error_of, reference
from bench.gpu.kernels import rotation
from bench.gpu.rivals import RIVALS
from bench.shapes import SHAPES, Shape
from bench.workload import batches
from blob_oracle import FORMATS, Layout
from moerun.kernels.contract import KernelShape
from moerun.kernels.layout import layer_of

# hidden and inter: no multiples of groups, and such that rows are padded
SIZES = [(200, 136), (256, 128)]


@pytest.mark.parametrize(("hidden", "inter"), SIZES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_decoded_as_the_oracle_does(weight_format: str, hidden: int, inter: int) -> None:
    layer = layer_of(KernelShape(hidden, inter, 2, weight_format, "bf16", bias=True), 90)
    blobs = random_blobs(layer, 2, "cpu")
    layout = Layout(weight_format, hidden, inter, bias=True)
    for blob in blobs:
        values, expected = expert_values(layer, blob), layout.weights(blob.numpy())
        for name in ("gate", "up", "down"):
            ours = getattr(values, name)
            # a code times a scale, rounded to fp32 once
            torch.testing.assert_close(
                ours.double(), torch.from_numpy(expected[name]), rtol=2.0**-23, atol=0.0
            )
            assert 0.3 < float(ours.std()) * ours.shape[1] ** 0.5 < 3
        biases = layout.section(blob.numpy(), "gate_up_bias").view("float32")
        assert torch.equal(torch.cat((values.gate_bias, values.up_bias)), torch.from_numpy(biases))


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("activation", ["silu", "swiglu_oai"])
def test_rivals_give_what_the_reference_does(rival: str, activation: str) -> None:
    shape = Shape("small", 4, 2, 64, 32, activation=activation, bias=activation == "swiglu_oai")
    kernels = KernelShape(64, 32, 2, "bf16", "bf16", activation, shape.bias)
    layer = layer_of(kernels, 90)
    blobs = random_blobs(layer, 4, "cpu")
    values = [expert_values(layer, blob) for blob in blobs]
    tensors = {
        "gate_up": torch.stack([torch.cat((e.gate, e.up)) for e in values]).bfloat16(),
        "down": torch.stack([e.down for e in values]).bfloat16(),
    }
    if shape.bias:
        gate_up = torch.stack([torch.cat((e.gate_bias, e.up_bias)) for e in values])
        tensors |= {"gate_up_bias": gate_up, "down_bias": torch.stack([e.down_bias for e in values])}
    batch = batches(shape, "bf16", 7, "uniform", 1)[0]
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    out = RIVALS[rival](shape.spec, tensors, batch)
    # they round once more than ours: the products with gate and up, before the activation
    assert error_of(out, reference(shape.spec, layer, blobs, batch)) < 2 * TOLERANCE


@given(
    model=st.sampled_from(sorted(SHAPES)),
    tokens=st.integers(1, 4096),
    l2_mib=st.sampled_from([6, 40, 60, 126]),
)
def test_a_rotation_exceeds_the_cache_where_it_can(model: str, tokens: int, l2_mib: int) -> None:
    steps = rotation(SHAPES[model], "bf16", tokens, l2_mib << 20)
    assert 1 <= steps <= 32
    assert steps == 1 or steps * tokens <= 2048
