"""The blob's byte layout and its number formats once more, in numpy and independent of the C++ code.

Written from the prose in src/expert_store/blob_layout.h and src/types.h: what tests hold the core to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import ml_formats


@dataclass(frozen=True)
class Format:
    """bits of a code; scale dtype; group along K (None: the row); rows that share a scale; zero points."""

    bits: int
    scale: type | None = None
    group: int | None = None
    block_rows: int = 1
    zeros: bool = False


FORMATS = {
    "fp32": Format(32),
    "fp16": Format(16),
    "bf16": Format(16),
    "int8": Format(8, np.float32),
    "int8_g128": Format(8, np.float16, 128),
    **{f"int4_g{group}": Format(4, np.float16, group) for group in (32, 64, 128)},
    **{f"int4z_g{group}": Format(4, np.float16, group, zeros=True) for group in (32, 64, 128)},
    "fp8_b128": Format(8, np.float32, 128, block_rows=128),
    "mxfp4": Format(4, np.uint8, 32),
}
QUANTISED = [name for name, f in FORMATS.items() if f.scale is not None]


def up(n: int, multiple: int) -> int:
    """n, rounded up to a multiple."""
    return -(-n // multiple) * multiple


class Layout:
    """Byte offsets of one expert's sections: `sections` maps a name to (offset, bytes), in order."""

    def __init__(self, name: str, hidden: int, inter: int, bias: bool) -> None:
        self.name, self.format = name, FORMATS[name]
        self.hidden, self.inter = hidden, inter
        f = self.format
        self.sections: dict[str, tuple[int, int]] = {}
        position = 0

        def add(section: str, nbytes: int) -> None:
            nonlocal position
            self.sections[section] = (position, nbytes)
            position = up(position + nbytes, 64)

        for matrix, parts, rows, columns in (("gate_up", 2, inter, hidden), ("down", 1, hidden, inter)):
            row_bytes = up(-(-columns * f.bits // 8), 64)
            add(f"{matrix}_codes", parts * rows * row_bytes)
            if f.scale is not None:
                groups = 1 if f.group is None else -(-(row_bytes * 8 // f.bits) // f.group)
                count = parts * -(-rows // f.block_rows) * groups
                add(f"{matrix}_scales", count * np.dtype(f.scale).itemsize)
                if f.zeros:
                    add(f"{matrix}_zeros", count)
        if bias:
            add("gate_up_bias", 8 * inter)
            add("down_bias", 4 * hidden)
        self.bytes = up(position + 64, 256)

    def section(self, blob: np.ndarray, name: str) -> np.ndarray:
        """One section of a blob, uint8 [bytes]: a view."""
        offset, nbytes = self.sections[name]
        return blob[offset : offset + nbytes]

    def padded_matrix(self, blob: np.ndarray, matrix: str) -> np.ndarray:
        """The weights of "gate_up" or "down" with the padding of their rows, float64 [rows, filled K]."""
        f, parts = self.format, 2 if matrix == "gate_up" else 1
        rows = self.inter if matrix == "gate_up" else self.hidden
        codes = self.section(blob, f"{matrix}_codes").reshape(parts * rows, -1)
        if f.scale is None:
            return ml_formats.plain(codes, self.name)
        if f.bits == 4:
            codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(parts * rows, -1)
        filled = codes.shape[1]
        group = f.group or filled
        scales = self.section(blob, f"{matrix}_scales").view(f.scale)
        column = np.arange(filled) // group
        # of each row: which row of scales; blocks of rows begin anew in up
        row = np.arange(rows) // f.block_rows
        row = np.concatenate([row + part * -(-rows // f.block_rows) for part in range(parts)])
        scales = scales.reshape(-1, column[-1] + 1)[row][:, column]
        if self.name == "mxfp4":
            return ml_formats.e2m1(codes) * ml_formats.e8m0(scales)
        scales = scales.astype(np.float64)
        if self.name == "fp8_b128":
            return ml_formats.e4m3(codes) * scales
        if f.bits == 8:
            return codes.view(np.int8).astype(np.float64) * scales
        zero = np.full_like(codes, 8)
        if f.zeros:
            zero = self.section(blob, f"{matrix}_zeros").reshape(-1, column[-1] + 1)[row][:, column]
        return (codes.astype(np.float64) - zero) * scales

    def weights(self, blob: np.ndarray) -> dict[str, np.ndarray]:
        """gate, up [I, H] and down [H, I], float64."""
        gate_up = self.padded_matrix(blob, "gate_up")[:, : self.hidden]
        down = self.padded_matrix(blob, "down")[:, : self.inter]
        return {"gate": gate_up[: self.inter], "up": gate_up[self.inter :], "down": down}
