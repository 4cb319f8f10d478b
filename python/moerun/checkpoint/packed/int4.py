"""Four-bit integers with group scales in the three common packings: compressed-tensors, GPTQ and AWQ.

All put eight codes into an int32. They differ in which way the eight lie: along K from the lowest bits up
(compressed-tensors, GPTQ), which is our own order of nibbles, or along N in AWQ's order.
"""

from __future__ import annotations

import numpy as np

from moerun.checkpoint.packed.parts import Part, Projection, as_fp16

_PER_WORD = 8
_FLOATS = ("F16", "BF16", "F32")
# AWQ's GEMM kernels: bits 4 i .. 4 i + 3 of a word hold column _AWQ_ORDER[i] of its eight.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _check(rows: int, columns: int, group: int, packed: int) -> None:
    if columns % group or packed % _PER_WORD:
        raise ValueError(
            f"{rows} x {columns} weights cannot be packed with groups of {group}, {_PER_WORD} codes a word"
        )


def _nibbles(words: np.ndarray, order: tuple[int, ...] = tuple(range(_PER_WORD))) -> np.ndarray:
    """int32 [n, m] -> uint8 [n, 8 m]; bits 4 i of a word go to place order[i] of its eight."""
    result = np.empty((*words.shape, _PER_WORD), np.uint8)
    unsigned = words.view(np.uint32)
    for i, place in enumerate(order):
        result[..., place] = (unsigned >> np.uint32(4 * i)) & np.uint32(15)
    return result.reshape(len(words), -1)


class PackQuantized:
    """compressed-tensors: ``weight_packed`` int32 [N, K / 8], ``weight_scale`` [N, K / group].

    With zero points also ``weight_zero_point`` int32 [N / 8, K / group]. Codes and zero points are stored
    plus 8.
    """

    name = "compressed-tensors pack-quantized"

    def __init__(self, group: int, zeros: bool) -> None:
        self.group, self.zeros = group, zeros
        self.weight_format = f"int4{'z' if zeros else ''}_g{group}"

    def parts(self, rows: int, columns: int) -> list[Part]:
        """See Scheme."""
        _check(rows, columns, self.group, columns)
        groups = columns // self.group
        parts = [
            Part("weight_packed", ("I32",), (rows, columns // _PER_WORD)),
            Part("weight_scale", _FLOATS, (rows, groups)),
        ]
        if self.zeros:
            parts.append(Part("weight_zero_point", ("I32",), (-(-rows // _PER_WORD), groups)))
        return parts

    def unpack(self, tensors: dict[str, np.ndarray], rows: int, columns: int) -> Projection:
        """See Scheme."""
        zeros = None
        if self.zeros:
            zeros = _nibbles(np.ascontiguousarray(tensors["weight_zero_point"].T)).T[:rows]
        return Projection(tensors["weight_packed"].view(np.uint8), as_fp16(tensors["weight_scale"]), zeros)


class Gptq:
    """GPTQ, symmetric: ``qweight`` int32 [K / 8, N], ``scales`` [K / group, N], ``qzeros`` [K / group, N/8].

    `stored_zero` is what qzeros hold for the zero point 8: 7 in the first version of the format, 8 in the
    second.
    """

    name = "GPTQ"

    def __init__(self, group: int, stored_zero: int) -> None:
        self.group, self.stored_zero = group, stored_zero
        self.weight_format = f"int4_g{group}"

    def parts(self, rows: int, columns: int) -> list[Part]:
        """See Scheme."""
        _check(rows, columns, self.group, rows)
        groups = columns // self.group
        return [
            Part("qweight", ("I32",), (columns // _PER_WORD, rows)),
            Part("qzeros", ("I32",), (groups, rows // _PER_WORD)),
            Part("scales", _FLOATS, (groups, rows)),
        ]

    def unpack(self, tensors: dict[str, np.ndarray], rows: int, columns: int) -> Projection:
        """See Scheme."""
        if (tensors["qzeros"].view(np.uint32) != self.stored_zero * 0x11111111).any():
            raise ValueError(f"expected symmetric weights (all qzeros {self.stored_zero}), found others")
        codes = np.ascontiguousarray(tensors["qweight"].T).view(np.uint8)
        return Projection(codes, as_fp16(tensors["scales"].T))


class Awq:
    """AWQ, GEMM: ``qweight`` int32 [K, N / 8], ``scales`` [K / group, N], ``qzeros`` [K / group, N / 8]."""

    name = "AWQ"

    def __init__(self, group: int) -> None:
        self.group = group
        self.weight_format = f"int4z_g{group}"

    def parts(self, rows: int, columns: int) -> list[Part]:
        """See Scheme."""
        _check(rows, columns, self.group, rows)
        groups = columns // self.group
        return [
            Part("qweight", ("I32",), (columns, rows // _PER_WORD)),
            Part("qzeros", ("I32",), (groups, rows // _PER_WORD)),
            Part("scales", _FLOATS, (groups, rows)),
        ]

    def unpack(self, tensors: dict[str, np.ndarray], rows: int, columns: int) -> Projection:
        """See Scheme."""
        codes = _nibbles(tensors["qweight"], _AWQ_ORDER)  # [K, N]
        pairs = (codes[0::2] | codes[1::2] << 4).T  # an odd k's code in the high half
        return Projection(pairs, as_fp16(tensors["scales"].T), _nibbles(tensors["qzeros"], _AWQ_ORDER).T)
