"""What one would use on a GPU without moerun: torch's own ways to run a layer of experts, in bf16.

All weights lie on the device. A rival is a function (spec, tensors, batch) -> y [tokens, H], all on the
device; one that cannot run raises.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from bench.baselines import activate
from bench.workload import Batch
from moerun import LayerSpec

Rival = Callable[[LayerSpec, dict[str, torch.Tensor], Batch], torch.Tensor]

GATHER_MOST_BYTES = 24 << 30  # of copied weights; beyond, nobody would gather


def grouped_mm(spec: LayerSpec, tensors: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """torch.nn.functional.grouped_mm over pairs sorted by expert. Never waits for the device."""
    experts, order = batch.ids.reshape(-1).sort()
    tokens = order // spec.top_k
    numbers = torch.arange(spec.num_experts, device=experts.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
    h = functional.grouped_mm(batch.x[tokens], tensors["gate_up"].transpose(1, 2), offs=ends)
    if spec.bias:
        h += tensors["gate_up_bias"][experts]
    y = functional.grouped_mm(activate(spec, h), tensors["down"].transpose(1, 2), offs=ends)
    if spec.bias:
        y += tensors["down_bias"][experts]
    y = y * batch.weights.reshape(-1, 1)[order]
    out = torch.zeros(batch.x.shape, dtype=torch.float32, device=batch.x.device)
    return out.index_add_(0, tokens, y).to(batch.x.dtype)


def bmm_gather(spec: LayerSpec, tensors: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Copies every pair's weights side by side and multiplies them in one batch. For few tokens."""
    ids = batch.ids.reshape(-1)
    per_expert = tensors["gate_up"][0].nbytes + tensors["down"][0].nbytes
    if len(ids) * per_expert > GATHER_MOST_BYTES:
        raise ValueError(f"would copy {len(ids) * per_expert / 2**30:.0f} GiB of weights")
    x = batch.x.repeat_interleave(spec.top_k, dim=0)
    h = torch.bmm(tensors["gate_up"][ids], x.unsqueeze(2)).squeeze(2)
    if spec.bias:
        h += tensors["gate_up_bias"][ids]
    y = torch.bmm(tensors["down"][ids], activate(spec, h).unsqueeze(2)).squeeze(2)
    if spec.bias:
        y += tensors["down_bias"][ids]
    y = y.view(*batch.ids.shape, -1) * batch.weights.unsqueeze(2)
    return y.sum(dim=1).to(batch.x.dtype)


def mm_loop(spec: LayerSpec, tensors: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """torch.mm expert by expert, as transformers' eager experts. Waits for the ids at every step."""
    out = torch.zeros(batch.x.shape, dtype=torch.float32, device=batch.x.device)
    for expert in torch.unique(batch.ids).tolist():
        tokens, choices = (batch.ids == expert).nonzero(as_tuple=True)
        h = torch.mm(batch.x[tokens], tensors["gate_up"][expert].T)
        if spec.bias:
            h += tensors["gate_up_bias"][expert]
        y = torch.mm(activate(spec, h), tensors["down"][expert].T)
        if spec.bias:
            y += tensors["down_bias"][expert]
        out.index_add_(0, tokens, y * batch.weights[tokens, choices, None])
    return out.to(batch.x.dtype)


RIVALS: dict[str, Rival] = {"grouped_mm": grouped_mm, "bmm gather": bmm_gather, "mm loop": mm_loop}
WAITING = ("mm loop",)  # for the device, so that no CUDA graph can be recorded
