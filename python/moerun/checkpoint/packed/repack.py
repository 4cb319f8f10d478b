"""Lays packed experts into blobs, an expert at a time on all cores: numpy copies without the GIL.

Nothing is kept on disk: reading a blob from a cache takes as long as reading the checkpoint itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from moerun import _core
from moerun.checkpoint.layout import Biases
from moerun.checkpoint.packed.parts import Projection
from moerun.layer_spec import ExpertBlobs, LayerSpec
from moerun.quant.blobs import allocate, blobs_in, layout_of

# gate, up and down of one expert
Read = Callable[[int], tuple[Projection, Projection, Projection]]


def repack_layer(spec: LayerSpec, weight_format: str, read: Read, biases: Biases) -> ExpertBlobs:
    """Returns all experts of a layer in new memory; `read` unpacks one expert, on any thread.

    Raises
    ------
    Whatever `read` raises.
    """
    layout = layout_of(spec, weight_format)
    memory = allocate(spec.num_experts * layout.bytes)
    content = np.frombuffer(memory, np.uint8).reshape(spec.num_experts, layout.bytes)

    def repack(expert: int) -> None:
        gate, up, down = read(expert)
        blob, inter = content[expert], spec.intermediate_size
        _store(blob, layout.gate_up, gate, 0, 0)
        _store(blob, layout.gate_up, up, inter, layout.gate_up.scale_rows // 2)
        _store(blob, layout.down, down, 0, 0)
        if spec.bias:
            both = np.concatenate([_row(biases.gate_bias, expert), _row(biases.up_bias, expert)])
            for offset, values in (
                (layout.gate_up_bias, both),
                (layout.down_bias, _row(biases.down_bias, expert)),
            ):
                blob[offset : offset + values.nbytes] = values.view(np.uint8)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for _ in threads.map(repack, range(spec.num_experts)):
            pass  # raises what went wrong
    return blobs_in(spec, weight_format, memory)


def _row(biases: np.ndarray | None, expert: int) -> np.ndarray:
    assert biases is not None, "the layout of a family with biases reads them"
    return biases[expert]


def _store(blob: np.ndarray, to: _core.BlobMatrix, given: Projection, row: int, scale_row: int) -> None:
    """Writes codes and scales; what pads a row means 0."""
    rows, used = given.codes.shape
    codes = _view(blob, to.codes, (to.rows, to.row_bytes), np.uint8)[row : row + rows]
    codes[:, :used] = given.codes
    shape = (to.scale_rows, to.scale_stride)
    scales = _view(blob, to.scales, shape, given.scales.dtype)[scale_row : scale_row + len(given.scales)]
    scales[:, : given.scales.shape[1]] = given.scales
    if given.zeros is not None:
        zeros = _view(blob, to.zeros, shape, np.uint8)[scale_row : scale_row + len(given.zeros)]
        zeros[:, : given.zeros.shape[1]] = given.zeros


def _view(blob: np.ndarray, offset: int, shape: tuple[int, int], dtype: Any) -> np.ndarray:
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    return blob[offset : offset + nbytes].view(dtype).reshape(shape)
