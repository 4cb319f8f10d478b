"""Memory for blobs, the contiguous pieces in which quantised experts lie (src/expert_store/blob_layout.h)."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from moerun import _core
from moerun.layer_spec import ExpertBlobs, LayerSpec


def layout_of(spec: LayerSpec, weight_format: str) -> _core.BlobLayout:
    """Returns the layout of one expert's blob. Raises ValueError if the sizes cannot be."""
    return _core.BlobLayout(
        getattr(_core.WeightFormat, weight_format), spec.hidden_size, spec.intermediate_size, spec.bias
    )


def allocate(num_bytes: int) -> mmap.mmap:
    """Returns new memory, zeroed, at a multiple of the page size; large pages where the system gives them.

    Small ones where memory has several nodes: a large page would hold rows of more than one.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    one_node = len(_core.cpu_info()["nodes"]) == 1
    memory.madvise(mmap.MADV_HUGEPAGE if one_node else mmap.MADV_NOHUGEPAGE)
    return memory


def blobs_in(spec: LayerSpec, weight_format: str, buffer: Any, offset: int = 0) -> ExpertBlobs:
    """Returns all experts of a layer, one blob after the other from `offset` of a buffer on.

    The buffer is kept alive. ``buffer`` is anything with the buffer protocol whose address plus offset is a
    multiple of 256.
    """
    size = layout_of(spec, weight_format).bytes
    view = np.frombuffer(buffer, np.uint8, count=spec.num_experts * size, offset=offset)
    first = view.__array_interface__["data"][0]
    addresses = np.uint64(first) + np.arange(spec.num_experts, dtype=np.uint64) * np.uint64(size)
    return ExpertBlobs(weight_format, addresses, spec.bias, owner=view)
