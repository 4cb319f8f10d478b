"""Readers of quantised experts as people have them, one module for each way of packing.

Each turns the tensors of a projection into codes, scales and zero points of one of our formats, without
changing a number; `repack` lays them into blobs. `scheme` chooses by config.json, refusing by name what has
no reader.
"""

from moerun.checkpoint.packed.layout import PackedLayout, packed_layouts
from moerun.checkpoint.packed.repack import repack_layer
from moerun.checkpoint.packed.scheme import packed_scheme

__all__ = ["PackedLayout", "packed_layouts", "packed_scheme", "repack_layer"]
