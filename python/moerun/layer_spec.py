"""What a layer of experts is (LayerSpec) and where its weights lie in memory (ExpertMemory).

Used by the engine, the checkpoint reader and the adapters; holds no behaviour of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = ("fp32", "fp16", "bf16")
QUANTISED = (
    "int8",
    "int8_g128",
    "int4_g32",
    "int4_g64",
    "int4_g128",
    "int4z_g32",
    "int4z_g64",
    "int4z_g128",
    "fp8_b128",
    "mxfp4",
)
WEIGHT_FORMATS = DTYPES + QUANTISED


def bits_of(weight_format: str) -> int:
    """Bits of one code of a number format, without its scales."""
    if weight_format in DTYPES:
        return 32 if weight_format == "fp32" else 16
    return 4 if weight_format.startswith(("int4", "mxfp4")) else 8


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu2", "swiglu_oai")


@dataclass(frozen=True)
class LayerSpec:
    """Shape and arithmetic of one layer of experts.

    Each expert computes ``down(act(gate(x) + gate_bias) * (up(x) + up_bias)) + down_bias`` with gate and up
    ``[intermediate_size, hidden_size]`` and down ``[hidden_size, intermediate_size]``.

    Parameters
    ----------
    num_experts, hidden_size, intermediate_size, top_k
        E, H, I and k. ``1 <= top_k <= num_experts``.
    activation
        "silu", "gelu" (erf), "gelu_tanh", "relu2" (square of relu), or "swiglu_oai": gpt-oss's clamped
        ``min(g, limit) * sigmoid(alpha * g) * (clamp(u, -limit, limit) + 1)``.
    bias
        Whether the experts carry biases.
    quant
        Number format of the experts, one of WEIGHT_FORMATS; None keeps the format of the tensors. What the
        names mean is written in src/types.h: int4_g32 is 4 bits and a scale for each 32 weights along K,
        int4z has zero points too, fp8_b128 is e4m3 with a scale for each 128 x 128 block.
    swiglu_alpha, swiglu_limit
        Constants of "swiglu_oai".

    Raises
    ------
    ValueError
        A size that is not positive, ``top_k`` out of range, an unknown activation or format.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    top_k: int
    activation: str = "silu"
    bias: bool = False
    quant: str | None = None
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    def __post_init__(self) -> None:
        for name in ("num_experts", "hidden_size", "intermediate_size", "top_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"LayerSpec.{name} must be a positive integer, got {value!r}")
        if self.top_k > self.num_experts:
            raise ValueError(f"LayerSpec.top_k is {self.top_k}, but the layer has {self.num_experts} experts")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"LayerSpec.activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}"
            )
        if self.quant is not None and self.quant not in WEIGHT_FORMATS:
            raise ValueError(f"LayerSpec.quant {self.quant!r} is unknown; known: {', '.join(WEIGHT_FORMATS)}")


@dataclass(frozen=True)
class ExpertMemory:
    """Where the experts of one layer lie in host memory. Nothing is copied: the engine reads these addresses.

    ``gate[e]``, ``up[e]`` and ``down[e]`` are the byte addresses of element (0, 0) of expert e's matrices,
    uint64 ``[E]``; element (n, k) of gate and up lies ``n * gate_up_strides[0] + k * gate_up_strides[1]``
    elements further (down: ``down_strides``). They may point into different files. Biases are fp32 copies,
    contiguous.
    ``owner`` keeps the memory alive for as long as the layer exists.
    """

    dtype: str
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    gate_up_strides: tuple[int, int]
    down_strides: tuple[int, int]
    gate_bias: np.ndarray | None = None  # [E, I] fp32
    up_bias: np.ndarray | None = None  # [E, I] fp32
    down_bias: np.ndarray | None = None  # [E, H] fp32
    owner: Any = None


@dataclass(frozen=True)
class ExpertBlobs:
    """Experts of one layer that lie in blobs, one contiguous piece of host memory each.

    ``addresses`` uint64 [E] are multiples of 256; the bytes lie as src/expert_store/blob_layout.h says for
    ``format`` (one of WEIGHT_FORMATS), the layer's sizes and ``bias``. ``owner`` keeps the memory alive.
    """

    format: str
    addresses: np.ndarray
    bias: bool
    owner: Any = None
