"""The reference kernels of every format on random blobs, against the oracle's decoding and float64 sums."""

from __future__ import annotations

import numpy as np
import pytest

from blob_oracle import QUANTISED, Layout
from moerun import Engine, _core

EXPERTS = 3


def random_blob(layout: Layout, generator: np.random.Generator) -> np.ndarray:
    """Any codes, padding included, with scales that make weights of about 0.05; uint8 [bytes]."""
    blob = generator.integers(0, 256, layout.bytes, np.uint8)
    for matrix in ("gate_up", "down"):
        if layout.format.zeros:
            layout.section(blob, f"{matrix}_zeros")[:] &= 15
        scales = layout.section(blob, f"{matrix}_scales").view(layout.format.scale)
        if layout.name == "mxfp4":
            scales[:] = generator.integers(120, 124, scales.shape)
        else:
            largest = {"fp8_b128": 448.0}.get(layout.name, 2.0 ** (layout.format.bits - 1))
            scales[:] = generator.uniform(0.05, 0.1, scales.shape) / largest
    if layout.name == "fp8_b128":
        for matrix in ("gate_up", "down"):
            codes = layout.section(blob, f"{matrix}_codes")
            codes[(codes & 0x7F) == 0x7F] = 0  # NaN
    return blob


def silu_layer(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    gate, up = x @ weights["gate"].T, x @ weights["up"].T
    return (gate / (1 + np.exp(-gate)) * up) @ weights["down"].T


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize(("hidden", "inter"), [(72, 40), (64, 48), (200, 136), (33, 1)])
def test_layer_on_random_blobs(name: str, hidden: int, inter: int) -> None:
    layout = Layout(name, hidden, inter, bias=False)
    generator = np.random.default_rng(hidden)
    memory = np.empty(EXPERTS * layout.bytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    blobs = memory[start:][: EXPERTS * layout.bytes].reshape(EXPERTS, -1)
    for blob in blobs:
        blob[:] = random_blob(layout, generator)
    x = generator.standard_normal((5, hidden)).astype(np.float32)
    ids = generator.integers(0, EXPERTS, (5, 2))
    weights = generator.uniform(0.2, 1, (5, 2)).astype(np.float32)

    expected = np.zeros((5, hidden))
    for token in range(5):
        for expert, weight in zip(ids[token], weights[token], strict=True):
            expected[token] += weight * silu_layer(layout.weights(blobs[expert]), x[token].astype(np.float64))

    with Engine(isa="ref", cpu_threads=1) as engine:
        core = engine._core.add_blobs(
            hidden=hidden,
            inter=inter,
            top_k=2,
            format=getattr(_core.WeightFormat, name),
            activation=_core.ActivationSpec(_core.Activation.silu),
            bias=False,
            blobs=blobs.ctypes.data + np.arange(EXPERTS, dtype=np.uint64) * np.uint64(layout.bytes),
            owner=memory,
        )
        out = np.empty_like(x)
        engine._core.forward(core, batch(x, ids, weights, out))
    # fp32 sums of at most `hidden` terms, twice in a row
    assert np.abs(out - expected).max() <= 4 * hidden * 2.0**-24 * np.abs(expected).max()


def batch(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray) -> _core.Batch:
    fp32 = _core.DType.fp32
    return _core.Batch(
        tokens=len(x),
        top_k=ids.shape[1],
        x=(x.ctypes.data, fp32, x.shape[1]),
        ids=ids.ctypes.data,
        ids_are_64_bit=True,
        ids_stride=ids.shape[1],
        weights=(weights.ctypes.data, fp32, weights.shape[1]),
        out=(out.ctypes.data, fp32, out.shape[1]),
    )
