"""What one would use without moerun: torch, with the same weights, threads and number formats.

A baseline is a function (spec, tensors, batch) -> y [tokens, H]. One that cannot run raises, and its column
says n/a.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from bench.workload import Batch
from moerun import LayerSpec

Baseline = Callable[[LayerSpec, dict[str, torch.Tensor], Batch], torch.Tensor]


def torch_loop(spec: LayerSpec, tensors: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """As transformers' eager experts: gather an expert's tokens, two matrix products, scatter; one by one."""
    order, tokens, ends = _by_expert(spec, batch)
    weights = batch.weights.reshape(-1, 1)
    out = torch.zeros(batch.x.shape, dtype=torch.float32)
    begin = 0
    for expert, end in enumerate(ends.tolist()):
        if begin == end:
            continue
        rows = tokens[begin:end]
        h = batch.x.index_select(0, rows) @ tensors["gate_up"][expert].T
        if spec.bias:
            h += tensors["gate_up_bias"][expert]
        y = activate(spec, h) @ tensors["down"][expert].T
        if spec.bias:
            y += tensors["down_bias"][expert]
        out.index_add_(0, rows, y * weights.index_select(0, order[begin:end]))
        begin = end
    return out.to(batch.x.dtype)


def grouped_mm(spec: LayerSpec, tensors: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """All experts at once with torch.nn.functional.grouped_mm, as transformers' "grouped_mm" experts.

    torch 2.13 does it on the CPU in bf16, fp16 and fp32, if rows are multiples of 16 bytes (fp32: any).
    """
    order, tokens, ends = _by_expert(spec, batch)
    x = batch.x.index_select(0, tokens)
    h = functional.grouped_mm(x, tensors["gate_up"].transpose(1, 2), offs=ends)
    experts = batch.ids.reshape(-1).index_select(0, order)
    if spec.bias:
        h += tensors["gate_up_bias"].index_select(0, experts)
    y = functional.grouped_mm(activate(spec, h), tensors["down"].transpose(1, 2), offs=ends)
    if spec.bias:
        y += tensors["down_bias"].index_select(0, experts)
    y = y * batch.weights.reshape(-1, 1).index_select(0, order)
    return torch.zeros(batch.x.shape, dtype=torch.float32).index_add_(0, tokens, y).to(batch.x.dtype)


BASELINES: dict[str, Baseline] = {"torch loop": torch_loop, "grouped_mm": grouped_mm}


def _by_expert(spec: LayerSpec, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, choice) pairs sorted by expert: places, tokens, and where each expert's end (int32 [E])."""
    experts, order = batch.ids.reshape(-1).sort()
    ends = torch.bincount(experts, minlength=spec.num_experts).cumsum(0).to(torch.int32)
    return order, order // spec.top_k, ends


def activate(spec: LayerSpec, h: torch.Tensor) -> torch.Tensor:
    """act(gate) * up of h [rows, 2I], gate first."""
    gate, up = h.chunk(2, dim=-1)
    if spec.activation == "silu":
        return functional.silu(gate) * up
    if spec.activation == "swiglu_oai":
        gate = gate.clamp(max=spec.swiglu_limit)
        up = up.clamp(-spec.swiglu_limit, spec.swiglu_limit)
        return gate * torch.sigmoid(spec.swiglu_alpha * gate) * (up + 1)
    raise ValueError(f"the baselines have no activation {spec.activation!r}")
