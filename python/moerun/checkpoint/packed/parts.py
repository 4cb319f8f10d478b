"""What the readers of packed experts have in common: the tensors they expect and what they make of them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Part(NamedTuple):
    """One tensor of a projection: its name behind the projection's, allowed dtypes, and shape."""

    suffix: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


class Projection(NamedTuple):
    """One matrix [N, K] in the codes of a weight format (src/types.h).

    codes uint8 [N, bytes of K codes]; scales [N or blocks of rows, groups] in the format's scale type; zeros
    uint8 of the same shape, or None.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None


class Scheme(Protocol):
    """One way of packing a matrix [rows, columns] into tensors."""

    name: str
    weight_format: str

    def parts(self, rows: int, columns: int) -> list[Part]:
        """The tensors of one projection. Raises ValueError for sizes that the packing cannot have."""

    def unpack(self, tensors: dict[str, np.ndarray], rows: int, columns: int) -> Projection:
        """Turns the parts, by suffix, into a projection. Raises ValueError for content that has no reader."""


def as_fp16(scales: np.ndarray) -> np.ndarray:
    """Scales as fp16. Raises ValueError if one is lost or has no such number."""
    with np.errstate(over="ignore"):
        result = scales.astype(np.float16)
    if not np.isfinite(result).all() or (np.abs(result - scales) > np.abs(scales) * 2.0**-8).any():
        raise ValueError("expected scales within the range of fp16, found smaller, larger or infinite ones")
    return result
