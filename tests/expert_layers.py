"""Random experts and routings for tests, and the ways in which their memory may lie when an engine reads it.

Everything is drawn from a seed. Sizes of numbers are chosen so that outputs are about 1 and that limits are
hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moerun
from oracle import Experts

REPOSITORY = Path(__file__).parent.parent
# One folder per instruction set, as in the sources: a new one is tested as soon as it is there.
ALL_ISAS = sorted(folder.parent.name for folder in REPOSITORY.glob("cpu/*/kernels.cc"))
ISAS_WITH_BF16_DOT = ("avx512_bf16", "amx", "amx_emulated")
ISAS_WITH_INT8_DOT = ("avx_vnni", "avx512_vnni", *ISAS_WITH_BF16_DOT)
ISAS_WITH_NIBBLE_TILES = ("avx512_bf16",)  # 4-bit codes become bytes for many tokens; AMX multiplies bf16
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu2", "swiglu_oai")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMAT_OF = {dtype: name for name, dtype in DTYPES.items()}
LAYOUTS = ("rows", "columns", "interleaved")


def engine_for(isa: str, cpu_threads: int = 1) -> moerun.Engine:
    """An engine with kernels of `isa`; skips the test, saying why, if the machine lacks them."""
    try:
        return moerun.Engine(isa=isa, cpu_threads=cpu_threads)
    except ValueError as error:
        pytest.skip(str(error))


def random_experts(
    num_experts: int,
    hidden: int,
    inter: int,
    dtype: torch.dtype = torch.float32,
    activation: str = "silu",
    bias: bool = False,
    seed: int = 0,
) -> Experts:
    """Experts whose gate and up results have a standard deviation of 1, or 5 where the activation has
    limits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    gain = 5.0 if activation == "swiglu_oai" else 1.0
    biases: dict[str, torch.Tensor] = {}
    if bias:
        biases = {
            "gate_bias": normal(num_experts, inter, scale=0.5),
            "up_bias": normal(num_experts, inter, scale=0.5),
            "down_bias": normal(num_experts, hidden, scale=0.5),
        }
    return Experts(
        gate=normal(num_experts, inter, hidden, scale=gain / hidden**0.5).to(dtype),
        up=normal(num_experts, inter, hidden, scale=gain / hidden**0.5).to(dtype),
        down=normal(num_experts, hidden, inter, scale=1 / inter**0.5).to(dtype),
        activation=activation,
        **biases,
    )


@dataclass(frozen=True)
class Routed:
    """A batch: x [tokens, H], ids [tokens, k], weights [tokens, k]."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    def __iter__(self) -> Any:
        return iter((self.x, self.ids, self.weights))

    def with_x(self, dtype: torch.dtype) -> Routed:
        return replace(self, x=self.x.to(dtype))


def random_batch(
    tokens: int, hidden: int, num_experts: int, top_k: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Routed:
    """Tokens with distinct experts each, and weights that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, num_experts, generator=generator)
    ids = scores.topk(top_k, dim=1).indices
    weights = torch.rand(tokens, top_k, generator=generator) + 0.1
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    return Routed(x, ids, weights / weights.sum(1, keepdim=True))


def spec_of(experts: Experts, top_k: int = 1) -> moerun.LayerSpec:
    return moerun.LayerSpec(
        experts.num_experts,
        experts.hidden,
        experts.inter,
        top_k=top_k,
        activation=experts.activation,
        bias=experts.gate_bias is not None,
        swiglu_alpha=experts.alpha,
        swiglu_limit=experts.limit,
    )


def raw_bytes(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's elements in order, as bytes."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


Placement = Callable[[np.ndarray], tuple[int, Any]]


def anywhere(data: np.ndarray) -> tuple[int, Any]:
    """Places bytes in a copy of their own."""
    copy = data.copy()
    return copy.ctypes.data, copy


def at_odd_halfword(data: np.ndarray) -> tuple[int, Any]:
    """Places bytes at an odd multiple of two bytes, as a safetensors file may."""
    room = np.zeros(len(data) + 64, np.uint8)
    begin = -room.ctypes.data % 64 + 2
    room[begin : begin + len(data)] = data
    return room.ctypes.data + begin, room


def memory_of(experts: Experts, layout: str, place: Placement = anywhere) -> moerun.ExpertMemory:
    """The experts' weights in memory, one placement per block of memory that a checkpoint would have.

    rows: gate, up and down lie apart, K-contiguous. columns: the same, transposed. interleaved: gpt-oss's
    gate_up [E, H, 2I] with gate in the even columns, and down [E, I, H].
    """
    keep: list[Any] = []

    def addresses(tensor: torch.Tensor) -> np.ndarray:
        """Of each expert's first element; every expert is placed by itself."""
        placed = [place(raw_bytes(tensor[e])) for e in range(len(tensor))]
        keep.append(placed)
        return np.array([address for address, _ in placed], np.uint64)

    item = experts.gate.element_size()
    hidden, inter = experts.hidden, experts.inter
    if layout == "rows":
        gate, up, down = (addresses(t) for t in (experts.gate, experts.up, experts.down))
        gate_up_strides, down_strides = (hidden, 1), (inter, 1)
    elif layout == "columns":
        gate, up, down = (addresses(t.transpose(1, 2)) for t in (experts.gate, experts.up, experts.down))
        gate_up_strides, down_strides = (1, inter), (1, hidden)
    else:
        both = torch.stack([experts.gate, experts.up], dim=2).reshape(len(experts.gate), 2 * inter, hidden)
        gate = addresses(both.transpose(1, 2))
        up = gate + np.uint64(item)
        down = addresses(experts.down.transpose(1, 2))
        gate_up_strides, down_strides = (2, 2 * inter), (1, hidden)

    def bias(values: torch.Tensor | None) -> np.ndarray | None:
        return None if values is None else values.float().numpy().copy()

    return moerun.ExpertMemory(
        dtype=FORMAT_OF[experts.dtype],
        gate=gate,
        up=up,
        down=down,
        gate_up_strides=gate_up_strides,
        down_strides=down_strides,
        gate_bias=bias(experts.gate_bias),
        up_bias=bias(experts.up_bias),
        down_bias=bias(experts.down_bias),
        owner=keep,
    )


def tensors_of(experts: Experts) -> dict[str, torch.Tensor]:
    """What Engine.add_layer takes."""
    tensors = {"gate_up": torch.cat([experts.gate, experts.up], dim=1), "down": experts.down}
    if experts.gate_bias is not None and experts.up_bias is not None and experts.down_bias is not None:
        tensors["gate_up_bias"] = torch.cat([experts.gate_bias, experts.up_bias], dim=1)
        tensors["down_bias"] = experts.down_bias
    return tensors


def blob_bytes(experts: Experts) -> int:
    """Of one of these experts as a GPU's cache holds it."""
    from moerun import _core

    format_ = getattr(_core.WeightFormat, FORMAT_OF[experts.dtype])
    return _core.BlobLayout(format_, experts.hidden, experts.inter, experts.gate_bias is not None).bytes
