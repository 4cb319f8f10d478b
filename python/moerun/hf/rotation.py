"""Cosines and sines of a model's rotary embedding by position, computed once by the model's own module."""

from __future__ import annotations

from typing import Any

import torch

_MOVING = ("dynamic", "longrope")  # kinds whose angles depend on how long the sequence is
_LEAST = 1024  # positions


class RotationTable:
    """Of one rotary embedding, for activations of one type."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype
        self._cos = self._sin = torch.empty(0, 0)
        kind = getattr(module, "rope_type", None)
        self.is_fixed = isinstance(kind, str) and kind not in _MOVING

    def rows(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of positions int64 [n]: float32 [n, width] each, rounded as the module rounds them."""
        cos, sin = self.first(int(positions.max()) + 1)
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def first(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of positions 0 to at least count - 1."""
        if count > self._cos.shape[0]:
            self._grow(max(_LEAST, 2 * self._cos.shape[0], count))
        return self._cos, self._sin

    def _grow(self, count: int) -> None:
        like = torch.empty(0, dtype=self._dtype)
        cos, sin = self._module(like, torch.arange(count)[None])
        self._cos, self._sin = cos[0].float().contiguous(), sin[0].float().contiguous()
