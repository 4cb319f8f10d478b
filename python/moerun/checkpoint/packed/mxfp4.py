"""MXFP4 (OCP Microscaling 1.0) as gpt-oss is published: e2m1 codes, a power of two for 32 weights."""

from __future__ import annotations

import numpy as np

from moerun.checkpoint.packed.parts import Part, Projection

_GROUP = 32


class Mxfp4:
    """``_blocks`` [N, K / 32, 16], two codes a byte, the even k in the low half; ``_scales`` [N, K / 32]."""

    name = "MXFP4"
    weight_format = "mxfp4"

    def parts(self, rows: int, columns: int) -> list[Part]:
        """See Scheme."""
        if columns % _GROUP:
            raise ValueError(f"MXFP4 needs rows of a multiple of {_GROUP} weights, found {columns}")
        return [
            Part("_blocks", ("U8",), (rows, columns // _GROUP, _GROUP // 2)),
            Part("_scales", ("U8",), (rows, columns // _GROUP)),
        ]

    def unpack(self, tensors: dict[str, np.ndarray], rows: int, columns: int) -> Projection:
        """See Scheme."""
        return Projection(tensors["_blocks"].reshape(rows, columns // 2), tensors["_scales"])
