"""Quantising: how far each weight may move, by its format's definition, and that bytes are reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import ml_formats
from blob_oracle import FORMATS, QUANTISED
from moerun import Engine, LayerSpec
from quantised import memory_of, quantise, quantise_matrix

# Rows shorter than a group, no multiple of one, several of them.
WIDTHS = (1, 31, 40, 72, 128, 200, 300)
ISAS = ("ref", "avx2", "avx512", "avx512_bf16")
# The largest distance between neighbouring codes, in scales; and the largest code.
INT_CODES = {"int8": 127, "int8_g128": 127}

matrices = st.sampled_from(WIDTHS).flatmap(
    lambda columns: st_numpy.arrays(
        np.float32,
        (3, columns),
        elements=st.floats(-4, 4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3),
    )
)


def scales_of(quantised, name: str, rows: int, columns: int) -> np.ndarray:
    """The scale of each weight of gate, float64 [rows, columns]."""
    f = FORMATS[name]
    raw = quantised.layout.section(quantised.blobs[0], "gate_up_scales").view(f.scale)
    scale_rows = 2 * -(-rows // f.block_rows)
    raw = raw.reshape(scale_rows, -1)
    values = ml_formats.e8m0(raw) if name == "mxfp4" else raw.astype(np.float64)
    group = np.arange(columns) // (f.group or columns)
    return values[np.arange(rows) // f.block_rows][:, group]


@given(matrices, st.sampled_from(sorted(INT_CODES)))
def test_int8_moves_a_weight_by_half_a_step(weights: np.ndarray, name: str) -> None:
    quantised = quantise_matrix(weights, name)
    scale = scales_of(quantised, name, *weights.shape)
    error = np.abs(quantised.weights(0)["gate"] - weights)
    # the quotient is rounded to fp32 before it is rounded to a code of at most 127
    assert (error <= scale * (0.5 + 127 * 2.0**-22)).all()


@given(matrices, st.sampled_from([n for n in QUANTISED if n.startswith("int4")]))
def test_int4_takes_the_nearest_code(weights: np.ndarray, name: str) -> None:
    quantised = quantise_matrix(weights, name)
    decoded = quantised.weights(0)["gate"]
    scale = np.abs(scales_of(quantised, name, *weights.shape))
    codes = quantised.layout.section(quantised.blobs[0], "gate_up_codes").reshape(2 * len(weights), -1)
    codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(2 * len(weights), -1)
    codes = codes[: len(weights), : weights.shape[1]]
    near = np.abs(decoded - weights) <= scale * (0.5 + 16 * 2.0**-22)
    # beyond the ends of the range, the end is nearest
    outside = ((codes == 0) | (codes == 15)) & (np.abs(weights) >= np.abs(decoded))
    assert (near | outside | (codes == 0) | (codes == 15)).all()
    assert (near | (np.abs(decoded - weights) <= scale * 4)).all()


@given(matrices, st.sampled_from([n for n in QUANTISED if n.startswith("int4_")]))
def test_int4_is_no_worse_than_the_plain_scale(weights: np.ndarray, name: str) -> None:
    """Group by group, against scale = -(largest by magnitude) / 8 without a search, as llama.cpp's Q4_0."""
    decoded = quantise_matrix(weights, name).weights(0)["gate"]
    group = FORMATS[name].group
    for begin in range(0, weights.shape[1], group):
        w = weights[:, begin : begin + group].astype(np.float64)
        extreme = np.take_along_axis(w, np.abs(w).argmax(axis=1)[:, None], axis=1)
        scale = np.where(extreme == 0, 1, extreme / -8)
        plain = np.clip(np.rint(w / scale), -8, 7) * scale
        ours = decoded[:, begin : begin + group]
        # the scale is rounded to fp16: relatively at most 2^-11 of every value
        slack = ((w * 2.0**-11) ** 2).sum(axis=1) + 1e-30
        expected = ((plain - w) ** 2).sum(axis=1)
        assert (((ours - w) ** 2).sum(axis=1) <= expected + slack + 2 * np.sqrt(expected * slack)).all()


@given(matrices)
def test_fp8_is_the_nearest_of_all_codes(weights: np.ndarray) -> None:
    quantised = quantise_matrix(weights, "fp8_b128")
    scale = scales_of(quantised, "fp8_b128", *weights.shape)
    largest = np.abs(weights).max(initial=0)
    assert scale.max() <= np.float32(largest / 448) * (1 + 2.0**-23)
    codes = ml_formats.e4m3(np.arange(256, dtype=np.uint8))
    codes = codes[~np.isnan(codes)]
    ratio = np.divide(weights, scale, where=scale > 0, out=np.zeros(weights.shape))
    nearest = np.abs(ratio[..., None] - codes).min(axis=-1)
    found = np.abs(quantised.weights(0)["gate"] - weights)
    assert (found <= (nearest + np.abs(ratio) * 2.0**-22) * scale + 1e-30).all()


@given(matrices)
def test_mxfp4_is_the_nearest_code_of_the_better_of_two_scales(weights: np.ndarray) -> None:
    decoded = quantise_matrix(weights, "mxfp4").weights(0)["gate"]
    codes = ml_formats.e2m1(np.arange(16, dtype=np.uint8))
    for begin in range(0, weights.shape[1], 32):
        w = weights[:, begin : begin + 32].astype(np.float64)
        largest = np.abs(w).max(axis=1, keepdims=True)
        errors = []
        for extra in (0, 1):
            exponent = np.floor(np.log2(np.where(largest == 0, 1, largest))) - 2 + extra
            scale = 2.0**exponent
            errors.append(((np.abs((w / scale)[..., None] - codes).min(axis=-1) * scale) ** 2).sum(axis=1))
        ours = ((decoded[:, begin : begin + 32] - w) ** 2).sum(axis=1)
        assert np.allclose(ours, np.minimum(*errors), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize(("hidden", "inter"), [(72, 40), (64, 48), (200, 136), (33, 1)])
def test_every_format_every_shape_and_biases(name: str, hidden: int, inter: int) -> None:
    generator = np.random.default_rng(hidden)
    gate, up = generator.standard_normal((2, 2, inter, hidden)).astype(np.float32)
    down = generator.standard_normal((2, hidden, inter)).astype(np.float32)
    biases = tuple(generator.standard_normal((2, n)).astype(np.float32) for n in (inter, inter, hidden))
    quantised = quantise(memory_of(gate, up, down, biases), hidden, inter, name)
    # relative to the largest weight; int4 with 128 weights a scale is the coarsest
    bound = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}.get(name, 0.008 if "int8" in name else 0.2)
    for expert in range(2):
        found = quantised.weights(expert)
        for matrix, given_ in (("gate", gate), ("up", up), ("down", down)):
            assert np.abs(found[matrix] - given_[expert]).max() <= bound * np.abs(given_[expert]).max()
        blob = quantised.blobs[expert]
        bias = quantised.layout.section(blob, "gate_up_bias").view(np.float32)
        assert (bias == np.concatenate([biases[0][expert], biases[1][expert]])).all()
        assert (quantised.layout.section(blob, "down_bias").view(np.float32) == biases[2][expert]).all()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_padding_means_zero(name: str) -> None:
    generator = np.random.default_rng(0)
    quantised = quantise_matrix(generator.uniform(0.5, 1, (5, 41)).astype(np.float32), name)
    padded = quantised.layout.padded_matrix(quantised.blobs[0], "gate_up")
    assert padded.shape[1] > 41
    assert (padded[:, 41:] == 0).all()
    assert (padded[:5, :41] > 0.25).all()


@pytest.mark.parametrize("name", QUANTISED)
def test_bytes_depend_on_neither_instruction_set_nor_threads(name: str) -> None:
    generator = np.random.default_rng(1)
    gate, up = generator.standard_normal((2, 3, 136, 200)).astype(np.float32)
    down = generator.standard_normal((3, 200, 136)).astype(np.float32)
    memory = memory_of(gate, up, down)
    expected = quantise(memory, 200, 136, name, isa="ref", threads=1).blobs
    machine_has = [isa for isa in ISAS if has_isa(isa)]
    assert "ref" in machine_has
    for isa in machine_has:
        for threads in (1, 2):
            assert (quantise(memory, 200, 136, name, isa=isa, threads=threads).blobs == expected).all()


def has_isa(isa: str) -> bool:
    try:
        Engine(isa=isa, cpu_threads=1).close()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["bf16", "int8", "int4_g32", "fp8_b128"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_columns_and_interleaved_rows_give_the_same_bytes(name: str, dtype: type) -> None:
    """As gpt-oss stores them: [E, H, 2I] with gate and up taking turns, [E, I, H]."""
    generator = np.random.default_rng(2)
    hidden, inter = 72, 150
    both = generator.standard_normal((2, hidden, 2 * inter)).astype(dtype)
    down = generator.standard_normal((2, inter, hidden)).astype(dtype)
    gate, up = both[:, :, ::2].transpose(0, 2, 1), both[:, :, 1::2].transpose(0, 2, 1)
    strided = quantise(memory_of(gate, up, down.transpose(0, 2, 1)), hidden, inter, name)
    copies = [np.ascontiguousarray(a) for a in (gate, up, down.transpose(0, 2, 1))]
    assert (strided.blobs == quantise(memory_of(*copies), hidden, inter, name).blobs).all()


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-44, -1e-30])
def test_nothing_and_next_to_nothing(name: str, value: float) -> None:
    weights = np.full((2, 64), value, np.float32)
    assert np.abs(quantise_matrix(weights, name).weights(0)["gate"] - weights).max() <= 2.0**-24


@pytest.mark.parametrize("name", [n for n in QUANTISED if FORMATS[n].scale is np.float16])
@given(exponent=st.integers(-30, 18))
def test_fp16_scales_of_any_size(name: str, exponent: int) -> None:
    """Subnormal scales lose precision, but never clip: half a step of 2^-24 on top of the format's own."""
    weights = (np.linspace(-1, 1, 128, dtype=np.float32) * np.float32(2.0**exponent))[None]
    error = np.abs(quantise_matrix(weights, name).weights(0)["gate"] - weights)
    steps = 127 if name == "int8_g128" else 7.5
    assert error.max() <= 0.75 * 2.0**exponent / steps + 8 * 2.0**-24


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float) -> None:
    gate = np.zeros((20, 3, 64), np.float32)
    down = np.zeros((20, 64, 3), np.float32)
    up = gate.copy()
    up[18, 1, 63] = value
    with pytest.raises(ValueError, match=r"experts 16 to 19: expert 2, up, row [01].* not a number"):
        quantise(memory_of(gate, up, down), 64, 3, name)


@pytest.mark.parametrize("name", [n for n in QUANTISED if FORMATS[n].scale is np.float16])
def test_a_weight_beyond_the_scales_is_refused(name: str) -> None:
    weights = np.full((2, 64), 2e38, np.float32)
    with pytest.raises(ValueError, match="too large for the fp16 scales"):
        quantise_matrix(weights, name)


def test_progress_counts_every_expert() -> None:
    from moerun.quant import quantise_layer

    gate = np.zeros((37, 2, 8), np.float32)
    memory = memory_of(gate, gate.copy(), np.zeros((37, 8, 2), np.float32))
    seen: list[int] = []
    quantise_layer(LayerSpec(37, 8, 2, top_k=1), memory, "int8", on_progress=seen.append)
    assert sum(seen) == 37
    assert len(seen) > 1
