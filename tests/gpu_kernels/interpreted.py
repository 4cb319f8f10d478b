"""A step of a layer on the GPU kernels: what tests describe, and what computes it.

`Step` is made in the test's process. `run` is called in one where Triton's interpreter is on (conftest.py),
or, with a GPU, in the test's own (test_gpu_kernels_on_device.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from moerun.kernels.contract import KernelShape
from moerun.kernels.layout import Layer, layer_of
from moerun.kernels.lists import StepLists, step_lists
from moerun.kernels.tiles import RegimeTiles, regimes


@dataclass(frozen=True)
class Step:
    """A layer's shape and experts, a batch, and how it is launched."""

    shape: KernelShape
    slab: np.ndarray  # uint8 [slots, blob bytes]
    x: torch.Tensor  # [tokens, H]
    ids: np.ndarray  # [tokens, top_k]
    weights: np.ndarray  # [tokens, top_k] fp32
    slots: Mapping[int, int]
    regime: str = "few"
    architecture: int = 90
    ranges: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    cpu: torch.Tensor | None = None  # [tokens, H] fp32
    launches: Sequence[int] = ()  # at which tiles new launches begin

    @property
    def tiles(self) -> RegimeTiles:
        found = regimes(self.shape, self.architecture)
        return next(tiles for tiles in found if tiles.name == self.regime)

    @property
    def layer(self) -> Layer:
        return layer_of(self.shape, self.architecture)

    @property
    def lists(self) -> StepLists:
        down = self.tiles.down
        return step_lists(
            self.ids, self.weights, self.slots, self.shape.inter, down.tokens, down.split, self.ranges
        )


def run(step: Step, device: str = "cpu") -> torch.Tensor:
    """The step's output [tokens, H]. Buffers hold NaN before, as a device's memory may."""
    from moerun.kernels import launch

    torch.set_num_threads(1)
    layer, tiles, lists = step.layer, step.tiles, step.lists
    on_device = launch.DeviceLists.of(lists, device)
    buffers = launch.Buffers.empty(layer, lists.pairs, tiles.gate_up.split, tiles.down.split, device)
    for buffer in (buffers.h, buffers.partial, buffers.y):
        buffer.fill_(float("nan"))
    out = torch.full((len(step.x), step.shape.hidden), float("nan"), dtype=step.x.dtype, device=device)
    slab = torch.from_numpy(step.slab.reshape(-1)).to(device)
    borders = [0, *step.launches, len(lists.tiles)]
    for begin, end in itertools.pairwise(borders):
        some = replace(on_device, tiles=on_device.tiles[begin:end])
        launch.launch_experts(layer, tiles, step.x.to(device), slab, some, buffers)
    cpu = None if step.cpu is None else step.cpu.to(device)
    launch.launch_combine(layer, on_device, buffers, out, cpu)
    return out.cpu()
