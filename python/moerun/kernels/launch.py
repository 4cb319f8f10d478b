"""Runs the kernels on torch tensors with Triton's ordinary launcher: for benches and tests.

The engine does not use it; it launches the compiled kernels from C++.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moerun.kernels.layout import Layer, Tile
from moerun.kernels.lists import StepLists
from moerun.kernels.moe import moerun_activate, moerun_combine, moerun_down, moerun_gate_up
from moerun.kernels.tiles import RegimeTiles, combine_tile

_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class DeviceLists:
    """StepLists as tensors on the device."""

    tiles: torch.Tensor
    pair_token: torch.Tensor
    pair_weight: torch.Tensor
    token_rows: torch.Tensor

    @classmethod
    def of(cls, lists: StepLists, device: torch.device | str) -> DeviceLists:
        arrays = (lists.tiles, lists.pair_token, lists.pair_weight, lists.token_rows)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


@dataclass(frozen=True)
class Buffers:
    """What the kernels write between x and out. May hold anything before."""

    h: torch.Tensor  # [pairs, h_stride]
    partial: torch.Tensor  # [pairs, split, 2, h_stride] fp32
    y: torch.Tensor  # [pairs * split, y_stride] fp32

    @classmethod
    def empty(
        cls, layer: Layer, pairs: int, gate_up_split: int, down_split: int, device: torch.device | str
    ) -> Buffers:
        shape = layer.shape
        split = gate_up_split if gate_up_split > 1 else 0
        return cls(
            torch.empty(pairs, shape.h_stride, dtype=_TORCH[shape.compute_dtype], device=device),
            torch.empty(pairs, split, 2, shape.h_stride, dtype=torch.float32, device=device),
            torch.empty(pairs * down_split, shape.y_stride, dtype=torch.float32, device=device),
        )


def launch_experts(
    layer: Layer,
    regime: RegimeTiles,
    x: torch.Tensor,
    slab: torch.Tensor,
    lists: DeviceLists,
    buffers: Buffers,
) -> None:
    """gate_up, activate where it is split, and down, for all tiles of the lists.

    Parameters
    ----------
    x
        [tokens, H], contiguous, of the layer's x_dtype.
    slab
        uint8 [slots * blob_bytes]: blobs.
    """
    tiles = len(lists.tiles)
    if tiles == 0:
        return
    up = buffers.h if regime.activate is None else buffers.partial
    inter, hidden = layer.shape.inter, layer.shape.hidden
    _run(moerun_gate_up, regime.gate_up, layer, inter, tiles, x, slab, up, lists.tiles, lists.pair_token)
    if regime.activate is not None:
        _run(moerun_activate, regime.activate, layer, inter, tiles, up, slab, buffers.h, lists.tiles)
    _run(
        moerun_down,
        regime.down,
        layer,
        hidden,
        tiles,
        buffers.h,
        slab,
        buffers.y,
        lists.tiles,
        lists.pair_weight,
    )


def launch_combine(
    layer: Layer, lists: DeviceLists, buffers: Buffers, out: torch.Tensor, cpu: torch.Tensor | None = None
) -> None:
    """out [tokens, H] = the sum of every token's rows of y, + cpu [tokens, H] fp32."""
    tile = combine_tile(layer.shape)
    has_cpu = int(cpu is not None)
    other = out if cpu is None else cpu
    grid = (-(-layer.shape.hidden // tile.rows), len(out))
    moerun_combine[grid](
        buffers.y, lists.token_rows, other, out, has_cpu, LAYER=layer, TILE=tile, num_warps=tile.num_warps
    )


def _run(kernel: Any, tile: Tile, layer: Layer, rows: int, tiles: int, *arguments: torch.Tensor) -> None:
    split = 1 if kernel is moerun_activate else tile.split
    grid = (-(-rows // tile.rows), tiles, split)
    kernel[grid](*arguments, LAYER=layer, TILE=tile, num_warps=tile.num_warps, num_stages=tile.num_stages)
