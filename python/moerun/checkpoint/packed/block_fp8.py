"""fp8 with block scales, as DeepSeek-V3 and Qwen3-FP8 are published: e4m3, a scale for 128 x 128 weights."""

from __future__ import annotations

import numpy as np

from moerun.checkpoint.packed.parts import Part, Projection

_BLOCK = 128


class BlockFp8:
    """``weight`` e4m3 [N, K]; ``weight_scale_inv`` [N / 128, K / 128], which multiplies despite its name."""

    name = "fp8 with block scales"
    weight_format = "fp8_b128"

    def parts(self, rows: int, columns: int) -> list[Part]:
        """See Scheme."""
        blocks = (-(-rows // _BLOCK), -(-columns // _BLOCK))
        return [
            Part("weight", ("F8_E4M3",), (rows, columns)),
            Part("weight_scale_inv", ("F32", "BF16"), blocks),
        ]

    def unpack(self, tensors: dict[str, np.ndarray], rows: int, columns: int) -> Projection:
        """See Scheme."""
        return Projection(tensors["weight"].view(np.uint8), tensors["weight_scale_inv"].astype(np.float32))
