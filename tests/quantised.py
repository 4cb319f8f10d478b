"""Quantises experts for tests and shows what became of them, by the oracle's decoding."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from blob_oracle import Layout
from moerun import ExpertBlobs, ExpertMemory, LayerSpec
from moerun.quant import quantise_layer


@dataclass
class Quantised:
    """One layer's blobs, uint8 [E, bytes], and how to read them."""

    layout: Layout
    blobs: np.ndarray

    def weights(self, expert: int) -> dict[str, np.ndarray]:
        return self.layout.weights(self.blobs[expert])


def memory_of(
    gate: np.ndarray, up: np.ndarray, down: np.ndarray, biases: tuple[np.ndarray, ...] | None = None
) -> ExpertMemory:
    """Where fp32 or fp16 arrays lie: gate, up [E, I, H], down [E, H, I]."""

    def addresses(a: np.ndarray) -> np.ndarray:
        return np.uint64(a.ctypes.data) + np.arange(len(a), dtype=np.uint64) * np.uint64(a.strides[0])

    assert gate.strides[1:] == up.strides[1:]
    gate_bias, up_bias, down_bias = biases or (None, None, None)
    return ExpertMemory(
        dtype={np.float32: "fp32", np.float16: "fp16"}[gate.dtype.type],
        gate=addresses(gate),
        up=addresses(up),
        down=addresses(down),
        gate_up_strides=tuple(s // gate.itemsize for s in gate.strides[1:]),
        down_strides=tuple(s // down.itemsize for s in down.strides[1:]),
        gate_bias=gate_bias,
        up_bias=up_bias,
        down_bias=down_bias,
        owner=(gate, up, down),
    )


def bytes_of(blobs: ExpertBlobs, layout: Layout) -> np.ndarray:
    """A copy of the blobs, uint8 [E, bytes]."""
    return np.stack(
        [
            np.ctypeslib.as_array((ctypes.c_uint8 * layout.bytes).from_address(int(address))).copy()
            for address in blobs.addresses
        ]
    )


def quantise(memory: ExpertMemory, hidden: int, inter: int, name: str, **options: object) -> Quantised:
    """Quantises a layer."""
    bias = memory.gate_bias is not None
    spec = LayerSpec(len(memory.gate), hidden, inter, top_k=1, bias=bias)
    layout = Layout(name, hidden, inter, bias)
    return Quantised(layout, bytes_of(quantise_layer(spec, memory, name, **options), layout))


def quantise_matrix(weights: np.ndarray, name: str, **options: object) -> Quantised:
    """Quantises one expert whose gate is `weights` [I, H]; up and down are zero."""
    inter, hidden = weights.shape
    gate = np.empty((1, inter, hidden), weights.dtype)
    gate[0] = weights
    memory = memory_of(
        gate, np.zeros((1, inter, hidden), weights.dtype), np.zeros((1, hidden, inter), weights.dtype)
    )
    return quantise(memory, hidden, inter, name, **options)
