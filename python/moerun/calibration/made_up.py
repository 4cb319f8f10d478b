"""Experts of a given shape with made-up weights, to be timed without a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moerun import _core
from moerun.layer_spec import ExpertMemory, LayerSpec
from moerun.quant.blobs import allocate

_LEAST, _ENOUGH = 2, 8  # experts: a fit needs two, the largest point has eight
_MOST_BYTES = 2 << 30
_BLOCK = 1 << 20  # numbers that are drawn; the rest repeats them


def made_up_layer(spec: LayerSpec) -> tuple[LayerSpec, ExpertMemory]:
    """A layer of this shape in bf16 with so many experts that caches forget one before its turn comes again.

    Returns the shape with that number of experts, at least 2, at most as many as `spec` says or as fit into
    2 GiB, and their memory.
    """
    size = 3 * spec.hidden_size * spec.intermediate_size  # numbers of an expert
    beyond_cache = 4 * _core.cpu_info()["l3_bytes"] // (2 * size) + 1
    count = min(spec.num_experts, max(_ENOUGH, beyond_cache), max(_LEAST, _MOST_BYTES // (2 * size)))
    memory = np.frombuffer(allocate(2 * size * count), np.uint16)
    block = np.random.default_rng(0).normal(0, 0.02, min(_BLOCK, len(memory))).astype(np.float32)
    bf16 = (block.view(np.uint32) >> 16).astype(np.uint16)
    for begin in range(0, len(memory), len(bf16)):
        part = memory[begin : begin + len(bf16)]
        part[:] = bf16[: len(part)]
    gate = np.uint64(memory.ctypes.data) + np.arange(count, dtype=np.uint64) * np.uint64(2 * size)
    matrix = np.uint64(2 * spec.hidden_size * spec.intermediate_size)
    return replace(spec, num_experts=count, top_k=min(spec.top_k, count)), ExpertMemory(
        dtype="bf16",
        gate=gate,
        up=gate + matrix,
        down=gate + 2 * matrix,
        gate_up_strides=(spec.hidden_size, 1),
        down_strides=(spec.intermediate_size, 1),
        owner=memory,
    )
