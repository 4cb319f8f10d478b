"""What a layer is given: random weights, and batches whose routing changes from step to step.

A real model reads other experts at every step and every layer, so the weights of a decode step come from
memory. Here every step has a routing of its own over a set of weights that is larger than the last-level
cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.shapes import Shape

FLOAT_DTYPE = {"fp16": torch.float16, "fp32": torch.float32}
ROUTINGS = ("uniform", "skewed")
ZIPF_EXPONENT = 1.0  # skewed: the r-th most popular expert is wanted 1/r as often as the first
SEED = 20251122

_BLOCK = 1 << 22  # weights are copies of a block of this many normal numbers, each starting elsewhere in it


@dataclass(frozen=True)
class Batch:
    """One step of a layer."""

    x: torch.Tensor  # [tokens, H]
    ids: torch.Tensor  # [tokens, k] int64
    weights: torch.Tensor  # [tokens, k] fp32, each row sums to 1


def tensor_dtype(weight_format: str) -> torch.dtype:
    """Of the activations, and of the weights that the engine is handed: bf16 where it quantises them."""
    return FLOAT_DTYPE.get(weight_format, torch.bfloat16)


def random_tensor(shape: tuple[int, ...], scale: float, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal numbers of standard deviation `scale`, made at the speed of a copy."""
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(_BLOCK, generator=generator) * scale).to(dtype)
    flat = torch.empty(int(np.prod(shape)), dtype=dtype)
    for begin in range(0, flat.numel(), _BLOCK):
        piece = flat[begin : begin + _BLOCK]
        shift = int(torch.randint(_BLOCK, (1,), generator=generator))
        piece.copy_(block.roll(shift)[: piece.numel()])
    return flat.view(shape)


def expert_weights(shape: Shape, weight_format: str) -> dict[str, torch.Tensor]:
    """Tensors for Engine.add_layer, scaled so that activations stay of order one."""
    dtype = tensor_dtype(weight_format)
    experts, hidden, inter = shape.num_experts, shape.hidden_size, shape.intermediate_size
    tensors = {
        "gate_up": random_tensor((experts, 2 * inter, hidden), hidden**-0.5, dtype, SEED),
        "down": random_tensor((experts, hidden, inter), inter**-0.5, dtype, SEED + 1),
    }
    if shape.bias:
        tensors["gate_up_bias"] = random_tensor((experts, 2 * inter), 0.1, dtype, SEED + 2)
        tensors["down_bias"] = random_tensor((experts, hidden), 0.1, dtype, SEED + 3)
    return tensors


def batches(shape: Shape, weight_format: str, tokens: int, routing: str, steps: int) -> list[Batch]:
    """`steps` batches with routings of their own; the same ones for the same arguments."""
    rng = np.random.default_rng([SEED, tokens, ROUTINGS.index(routing)])
    popularity = np.ones(shape.num_experts)
    if routing == "skewed":
        popularity = 1.0 / rng.permutation(np.arange(1, shape.num_experts + 1)) ** ZIPF_EXPONENT
    made = []
    for _ in range(steps):
        # The k largest of log popularity + Gumbel noise: k draws without replacement.
        noise = rng.gumbel(size=(tokens, shape.num_experts))
        ids = np.argsort(-(np.log(popularity) + noise), axis=1)[:, : shape.top_k]
        weights = rng.random((tokens, shape.top_k), dtype=np.float32) + 0.1
        x = rng.standard_normal((tokens, shape.hidden_size), dtype=np.float32)
        made.append(
            Batch(
                torch.from_numpy(x).to(tensor_dtype(weight_format)),
                torch.from_numpy(np.ascontiguousarray(ids)),
                torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)),
            )
        )
    return made
