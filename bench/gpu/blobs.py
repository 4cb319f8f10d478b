"""Experts of random numbers in any weight format, made where they are needed, and what their bytes mean.

`decode` reads the blob's layout (src/expert_store/blob_layout.h) in plain torch, by tables of all codes: what
the kernels' results are checked against. It shares no arithmetic with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from moerun.kernels.layout import Layer, Matrix

_PLAIN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS_STD = 0.1


@dataclass(frozen=True)
class ExpertValues:
    """One expert in fp32: gate, up [I, H], down [H, I]; biases [I], [I], [H], zero where there are none."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor
    up_bias: torch.Tensor
    down_bias: torch.Tensor


def random_blobs(layer: Layer, experts: int, device: str, seed: int = 0) -> torch.Tensor:
    """uint8 [experts, blob_bytes]: codes are random bits, scales such that activations stay of order one."""
    generator = torch.Generator(device).manual_seed(seed)
    blobs = torch.zeros(experts, layer.blob_bytes, dtype=torch.uint8, device=device)
    for matrix in (layer.gate, layer.up, layer.down):
        _fill(blobs, matrix, matrix.columns**-0.5, generator)
    if layer.shape.bias:
        inter, hidden = layer.shape.inter, layer.shape.hidden
        for begin, count in ((layer.gate_bias, inter), (layer.up_bias, inter), (layer.down_bias, hidden)):
            values = torch.randn(experts, count, generator=generator, device=device) * _BIAS_STD
            blobs[:, begin : begin + 4 * count] = values.view(torch.uint8)
    return blobs


def expert_values(layer: Layer, blob: torch.Tensor) -> ExpertValues:
    """One expert of `random_blobs`, or any other blob, in fp32."""

    def bias(begin: int, count: int) -> torch.Tensor:
        if not layer.shape.bias:
            return torch.zeros(count, device=blob.device)
        return blob[begin : begin + 4 * count].view(torch.float32)

    return ExpertValues(
        decode(blob, layer.gate),
        decode(blob, layer.up),
        decode(blob, layer.down),
        bias(layer.gate_bias, layer.shape.inter),
        bias(layer.up_bias, layer.shape.inter),
        bias(layer.down_bias, layer.shape.hidden),
    )


def decode(blob: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """A matrix of one blob, fp32 [rows, columns]."""
    stored = blob[matrix.codes :][: matrix.rows * matrix.row_bytes].view(matrix.rows, matrix.row_bytes)
    if matrix.plain:
        return stored.view(_PLAIN[matrix.format])[:, : matrix.columns].float()
    if matrix.bits == 4:
        stored = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1)
    values = _code_values(matrix.format).to(blob.device)[stored[:, : matrix.columns].int()]
    where = _scale_index(matrix, blob.device)
    if matrix.has_zeros:
        values -= blob[matrix.zeros :][: _scale_count(matrix)][where]
    return values * _scale_values(blob, matrix)[where]


def _fill(blobs: torch.Tensor, matrix: Matrix, std: float, generator: torch.Generator) -> None:
    count, device = matrix.rows * matrix.row_bytes, blobs.device
    codes = blobs[:, matrix.codes : matrix.codes + count]
    if matrix.plain:
        dtype = _PLAIN[matrix.format]
        for one in codes:  # at a time: in fp32 all of them would take twice the room of the layer
            numbers = torch.randn(count // dtype.itemsize, generator=generator, device=device) * std
            one.copy_(numbers.to(dtype).view(torch.uint8))
        return
    codes.random_(0, 256, generator=generator)
    if matrix.format == "fp8_b128":
        codes[(codes & 0x7F) == 0x7F] = 0  # no NaN
    shape = (len(blobs), _scale_count(matrix))
    if matrix.has_zeros:
        zeros = torch.randint(0, 16, shape, generator=generator, device=device, dtype=torch.uint8)
        blobs[:, matrix.zeros : matrix.zeros + shape[1]] = zeros
    # Scales differ by up to a factor of four, so that one taken from elsewhere shows.
    scales = std / float(_code_values(matrix.format).nan_to_num().std())
    if matrix.format == "mxfp4":
        exponent = 127 + round(math.log2(scales))
        stored = torch.randint(exponent - 1, exponent + 2, shape, generator=generator, device=device)
        stored = stored.to(torch.uint8)
    else:
        factors = 0.4 + 1.2 * torch.rand(shape, generator=generator, device=device)
        stored = (scales * factors).to(_scale_dtype(matrix.format)).view(torch.uint8)
    blobs[:, matrix.scales : matrix.scales + stored.shape[1]] = stored


def _code_values(weight_format: str) -> torch.Tensor:
    """What each code stands for, before scales and zero points; fp32 [16] or [256]."""
    if weight_format == "fp8_b128":
        return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    if weight_format.startswith("int8"):
        return torch.arange(256, dtype=torch.uint8).view(torch.int8).float()
    if weight_format == "mxfp4":
        return torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    zero = 0 if weight_format.startswith("int4z") else 8
    return torch.arange(16, dtype=torch.float32) - zero


def _scale_dtype(weight_format: str) -> torch.dtype:
    if weight_format in ("int8", "fp8_b128"):
        return torch.float32
    return torch.uint8 if weight_format == "mxfp4" else torch.float16


def _scale_values(blob: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """fp32 [count]"""
    dtype = _scale_dtype(matrix.format)
    stored = blob[matrix.scales :][: _scale_count(matrix) * dtype.itemsize].view(dtype)
    return torch.exp2(stored.float() - 127) if matrix.format == "mxfp4" else stored.float()


def _scale_count(matrix: Matrix) -> int:
    return -(-matrix.rows // matrix.block_rows) * matrix.scale_stride


def _scale_index(matrix: Matrix, device: torch.device) -> torch.Tensor:
    """Which scale belongs to a weight: [rows, columns]."""
    rows = torch.arange(matrix.rows, device=device) // matrix.block_rows
    columns = torch.arange(matrix.columns, device=device) // (matrix.group or matrix.columns)
    return rows[:, None] * matrix.scale_stride + columns[None, :]
