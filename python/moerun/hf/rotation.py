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
        last = int(positions.max())
        if last >= self._cos.shape[0]:
            self._grow(max(_LEAST, 2 * self._cos.shape[0], last + 1))
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def _grow(self, count: int) -> None:
        like = torch.empty(0, dtype=self._dtype)
        cos, sin = self._module(like, torch.arange(count)[None])
        self._cos, self._sin = cos[0].float().contiguous(), sin[0].float().contiguous()
