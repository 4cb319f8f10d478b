"""Quantises the experts of one layer: memory in bf16, fp16 or fp32 in, blobs out. The arithmetic is C++."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moerun import _core
from moerun.layer_spec import ExpertBlobs, ExpertMemory, LayerSpec
from moerun.quant.blobs import allocate, blobs_in, layout_of

# Experts per call of the core: enough to keep all cores busy, few enough for a progress bar to move.
_EXPERTS_PER_CALL = 16


def quantise_layer(
    spec: LayerSpec,
    memory: ExpertMemory,
    weight_format: str,
    threads: int | None = None,
    isa: str | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> ExpertBlobs:
    """Quantises all experts of a layer into new memory.

    Parameters
    ----------
    spec, memory
        The layer and where its weights lie.
    weight_format
        Any name of moerun.WEIGHT_FORMATS. How each rounds is described in cpu/kernels/quantise_inl.h.
    threads, isa
        As in EngineConfig. The result does not depend on them.
    on_progress
        Called with the number of experts that were finished since the last call.

    Raises
    ------
    ValueError
        A weight that is not finite or too large for the format; the message names its expert and row.
    """
    layout = layout_of(spec, weight_format)
    blobs = blobs_in(spec, weight_format, allocate(spec.num_experts * layout.bytes))
    quantise_into(layout, memory, blobs.addresses, threads, isa, on_progress)
    return blobs


def quantise_into(
    layout: _core.BlobLayout,
    memory: ExpertMemory,
    addresses: np.ndarray,
    threads: int | None = None,
    isa: str | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> None:
    """Writes the blobs at `addresses`, uint64 [E]. Everything else as in quantise_layer."""
    for begin in range(0, len(addresses), _EXPERTS_PER_CALL):
        some = slice(begin, begin + _EXPERTS_PER_CALL)
        biases = (memory.gate_bias, memory.up_bias, memory.down_bias)
        gate_bias, up_bias, down_bias = (None if b is None else b[some] for b in biases)
        try:
            _core.quantise(
                layout,
                getattr(_core.DType, memory.dtype),
                gate=memory.gate[some],
                up=memory.up[some],
                down=memory.down[some],
                gate_up_strides=memory.gate_up_strides,
                down_strides=memory.down_strides,
                gate_bias=gate_bias,
                up_bias=up_bias,
                down_bias=down_bias,
                blobs=addresses[some],
                threads=threads or 0,
                isa=isa or "",
            )
        except ValueError as error:
            raise ValueError(
                f"among experts {begin} to {begin + len(addresses[some]) - 1}: {error}"
            ) from error
        if on_progress is not None:
            on_progress(len(addresses[some]))
