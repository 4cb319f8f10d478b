"""Small float formats decoded by numpy from their definitions: sign, exponent with bias, fraction."""

from __future__ import annotations

import numpy as np


def _decode(codes: np.ndarray, exponent_bits: int, fraction_bits: int, bias: int) -> np.ndarray:
    codes = codes.astype(np.int64)
    fraction = codes & ((1 << fraction_bits) - 1)
    exponent = (codes >> fraction_bits) & ((1 << exponent_bits) - 1)
    sign = np.where(codes >> (fraction_bits + exponent_bits) & 1, -1.0, 1.0)
    normal = (1 + fraction / (1 << fraction_bits)) * 2.0 ** (exponent - bias)
    subnormal = fraction / (1 << fraction_bits) * 2.0 ** (1 - bias)
    return sign * np.where(exponent == 0, subnormal, normal)


def e4m3(codes: np.ndarray) -> np.ndarray:
    """OCP FP8 E4M3: 0x7f and 0xff are NaN."""
    return np.where((codes & 0x7F) == 0x7F, np.nan, _decode(codes, 4, 3, 7))


def e2m1(codes: np.ndarray) -> np.ndarray:
    """OCP FP4."""
    return _decode(codes, 2, 1, 1)


def e8m0(codes: np.ndarray) -> np.ndarray:
    """OCP MX scale: 255 is NaN."""
    return np.where(codes == 255, np.nan, 2.0 ** (codes.astype(np.float64) - 127))


def plain(raw: np.ndarray, name: str) -> np.ndarray:
    """fp32, fp16 or bf16 from bytes, uint8 [..., n]."""
    if name == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view({"fp16": np.float16, "fp32": np.float32}[name]).astype(np.float64)
