"""Where a layer's weights lie within a blob, and the tiles of its kernels: values that are compiled in.

Made from the C++ core's BlobLayout (src/expert_store/blob_layout.h). Kernels read attributes of these classes
while they are compiled; a blob's offsets are constants in the machine code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moerun import _core
from moerun.kernels.contract import KernelShape

# Weight format -> bits of a code, elements of K that share a scale (0: the row), rows that share one.
_CODES = {
    "fp32": (32, 0, 1),
    "fp16": (16, 0, 1),
    "bf16": (16, 0, 1),
    "int8": (8, 0, 1),
    "int8_g128": (8, 128, 1),
    "int4_g32": (4, 32, 1),
    "int4_g64": (4, 64, 1),
    "int4_g128": (4, 128, 1),
    "int4z_g32": (4, 32, 1),
    "int4z_g64": (4, 64, 1),
    "int4z_g128": (4, 128, 1),
    "fp8_b128": (8, 128, 128),
    "mxfp4": (4, 32, 1),
}
# Offsets within a blob are 32-bit in the kernels.
_LARGEST_BLOB = 2**31
# From sm_89 on, the hardware converts e4m3; below, Triton refuses the type.
_FIRST_WITH_FP8 = 89
# Three products of tf32: about as exact as fp32's own, and on tensor cores.
_FP32_PRODUCTS = "tf32x3"


@dataclass(frozen=True)
class Matrix:
    """One matrix of an expert, [rows, columns]. Offsets in bytes from the blob's beginning."""

    format: str
    rows: int
    columns: int
    codes: int
    row_bytes: int
    scales: int
    scale_stride: int  # scales from row to row
    zeros: int
    hardware_fp8: bool
    precision: str  # of products in fp32, as tl.dot names it

    @property
    def bits(self) -> int:
        return _CODES[self.format][0]

    @property
    def group(self) -> int:
        return _CODES[self.format][1]

    @property
    def block_rows(self) -> int:
        return _CODES[self.format][2]

    @property
    def plain(self) -> bool:
        return self.bits >= 16

    @property
    def has_zeros(self) -> bool:
        return self.format.startswith("int4z")

    @property
    def parts(self) -> int:
        """Weights in a byte: the kernels keep even and odd k apart instead of interleaving nibbles."""
        return 2 if self.bits == 4 else 1

    @property
    def chunk(self) -> int:
        """Weights in 16 bytes, what a thread loads at once. No chunk straddles two groups."""
        return 128 // self.bits

    @property
    def element(self) -> Any:
        """Triton's type of a stored element: the number itself, or a byte of codes."""
        return _triton_dtype(self.format if self.plain else "uint8")


@dataclass(frozen=True)
class Layer:
    """All that a layer's kernels know at compile time, besides their tiles."""

    shape: KernelShape
    blob_bytes: int
    gate: Matrix
    up: Matrix
    down: Matrix
    gate_bias: int
    up_bias: int
    down_bias: int

    @property
    def compute(self) -> Any:
        """Triton's type of the operands of matrix products."""
        return _triton_dtype(self.shape.compute_dtype)


@dataclass(frozen=True)
class Tile:
    """The sizes that a kernel is compiled for (see contract.py), and how it is scheduled.

    A program computes `rows` x `tokens` sums in steps of `step` along K.
    """

    rows: int
    tokens: int
    step: int
    split: int = 1
    num_warps: int = 4
    num_stages: int = 3


def layer_of(shape: KernelShape, architecture: int) -> Layer:
    """Returns what a layer's kernels for sm_`architecture` are compiled with.

    Raises
    ------
    ValueError
        An expert of 2 GiB or more.
    """
    layout = _core.BlobLayout(
        getattr(_core.WeightFormat, shape.weight_format), shape.hidden, shape.inter, shape.bias
    )
    if layout.bytes >= _LARGEST_BLOB:
        raise ValueError(
            f"an expert of {shape.inter} x {shape.hidden} in {shape.weight_format} takes {layout.bytes} "
            f"bytes; the GPU kernels address less than {_LARGEST_BLOB}: choose a smaller weight format, or "
            "device='cpu'"
        )

    def matrix(part: _core.BlobMatrix, index: int, parts: int) -> Matrix:
        rows, scale_rows = part.rows // parts, part.scale_rows // parts
        first_scale = index * scale_rows * part.scale_stride
        return Matrix(
            format=shape.weight_format,
            rows=rows,
            columns=part.columns,
            codes=part.codes + index * rows * part.row_bytes,
            row_bytes=part.row_bytes,
            scales=part.scales + first_scale * _scale_bytes(shape.weight_format),
            scale_stride=part.scale_stride,
            zeros=part.zeros + first_scale,
            hardware_fp8=architecture >= _FIRST_WITH_FP8,
            precision=_FP32_PRODUCTS,
        )

    return Layer(
        shape=shape,
        blob_bytes=layout.bytes,
        gate=matrix(layout.gate_up, 0, 2),
        up=matrix(layout.gate_up, 1, 2),
        down=matrix(layout.down, 0, 1),
        gate_bias=layout.gate_up_bias,
        up_bias=layout.gate_up_bias + 4 * shape.inter,
        down_bias=layout.down_bias,
    )


def _scale_bytes(weight_format: str) -> int:
    if weight_format in ("int8", "fp8_b128"):
        return 4
    return 1 if weight_format == "mxfp4" else 2


def _triton_dtype(name: str) -> Any:
    import triton.language as tl

    return {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16, "uint8": tl.uint8}[name]
