"""A tensor of a model that the engine has a copy of: whether it is still what was copied."""

from __future__ import annotations

from typing import Any

import torch


class Original:
    """Notes where a tensor lies and how often it was written to; keeps its memory, so that no other gets it.

    What is written through ``tensor.data`` is not noticed: torch does not count it.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._memory = tensor.detach()
        self._version = _version(tensor)

    def is_still(self, tensor: torch.Tensor | None) -> bool:
        """Whether `tensor` is the original, unchanged."""
        return (
            tensor is not None
            and tensor.data_ptr() == self._memory.data_ptr()
            and tensor.dtype is self._memory.dtype
            and _version(tensor) == self._version
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return self  # a copied module's tensors lie elsewhere


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # torch counts no writes to inference tensors
