"""One step of a layer on our GPU kernels, as the engine's scheduler would launch it, and the same in fp32.

All experts are resident: slot e holds expert e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.baselines import activate
from bench.gpu.blobs import expert_values
from bench.workload import Batch
from moerun import LayerSpec
from moerun.kernels.layout import Layer
from moerun.kernels.lists import StepLists, step_lists
from moerun.kernels.tiles import RegimeTiles

if TYPE_CHECKING:
    from moerun.kernels.launch import Buffers, DeviceLists

# Roundings to bf16 (u = 2^-8) between the weights and the output: scaled weights of gate, up and down, h, the
# output. Their errors are independent, each relative to its own number by at most u, so that the norm of
# their sum is below sqrt(5) u times that of the output; the activation's slope and the product with up may
# double it.
TOLERANCE = 2 * 5**0.5 * 2.0**-8


@dataclass(frozen=True)
class ExpertStep:
    """Everything that a step's launches need, on the device; `run` may be recorded as a CUDA graph."""

    layer: Layer
    regime: RegimeTiles
    x: torch.Tensor  # [tokens, H]
    slab: torch.Tensor  # uint8 [experts * blob_bytes]
    lists: DeviceLists
    buffers: Buffers
    out: torch.Tensor  # [tokens, H]
    active_experts: int

    def run(self) -> torch.Tensor:
        from moerun.kernels.launch import launch_combine, launch_experts

        launch_experts(self.layer, self.regime, self.x, self.slab, self.lists, self.buffers)
        launch_combine(self.layer, self.lists, self.buffers, self.out)
        return self.out

    def poison(self) -> None:
        """Fills all that the kernels write with NaN, which stays where they write nothing."""
        for buffer in (self.buffers.h, self.buffers.partial, self.buffers.y, self.out):
            buffer.fill_(float("nan"))


def choose_regime(
    regimes: Sequence[RegimeTiles], counts: np.ndarray, inter: int, multiprocessors: int
) -> RegimeTiles:
    """What LayerKernels (contract.py) says to take for a launch with `counts` pairs per expert."""
    largest = int(counts.max(initial=0))
    fitting = [regime for regime in regimes if regime.gate_up.tokens >= largest] or [regimes[-1]]
    chosen = fitting[0]
    tokens = chosen.gate_up.tokens
    tiles = int((-(-counts // tokens)).sum())
    programs = -(-inter // chosen.gate_up.rows) * tiles
    split = [r for r in regimes if r.gate_up.tokens == tokens and r.gate_up.split > 1]
    return split[0] if split and programs < multiprocessors else chosen


def expert_step(
    layer: Layer,
    regimes: Sequence[RegimeTiles],
    slab: torch.Tensor,
    batch: Batch,
    num_experts: int,
    multiprocessors: int,
) -> ExpertStep:
    """Lists and buffers of a batch, whose tensors may lie anywhere."""
    from moerun.kernels.launch import Buffers, DeviceLists

    ids = batch.ids.numpy()
    counts = np.bincount(ids.reshape(-1), minlength=num_experts)
    regime = choose_regime(regimes, counts, layer.shape.inter, multiprocessors)
    slots = {int(expert): int(expert) for expert in np.flatnonzero(counts)}
    lists: StepLists = step_lists(
        ids, batch.weights.numpy(), slots, layer.shape.inter, regime.down.tokens, regime.down.split
    )
    x = batch.x.to(slab.device)
    return ExpertStep(
        layer=layer,
        regime=regime,
        x=x,
        slab=slab.reshape(-1),
        lists=DeviceLists.of(lists, slab.device),
        buffers=Buffers.empty(layer, lists.pairs, regime.gate_up.split, regime.down.split, slab.device),
        out=torch.empty_like(x),
        active_experts=len(slots),
    )


def reference(spec: LayerSpec, layer: Layer, blobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """fp32 [tokens, H]: the same step in plain torch, one expert at a time, from the decoded weights.

    torch's fp32 products must not be done in tf32, which is its default.
    """
    device = blobs.device
    x, ids, weights = batch.x.to(device).float(), batch.ids.to(device), batch.weights.to(device)
    out = torch.zeros_like(x)
    for expert in torch.unique(batch.ids).tolist():
        tokens, choices = (ids == expert).nonzero(as_tuple=True)
        e = expert_values(layer, blobs[expert])
        rows = x[tokens]
        gate, up = rows @ e.gate.T + e.gate_bias, rows @ e.up.T + e.up_bias
        y = activate(spec, torch.cat((gate, up), dim=1)) @ e.down.T + e.down_bias
        out.index_add_(0, tokens, y * weights[tokens, choices, None])
    return out


def error_of(out: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative error of a token's output, by norms; NaN counts as infinite."""
    difference = (out.float() - expected).norm(dim=1) / expected.norm(dim=1)
    return float(difference.nan_to_num(nan=float("inf")).max())
