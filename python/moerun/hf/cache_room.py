"""Room to grow in the layers of a transformers cache: a step copies no keys and values but its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

LEAST_ROOM = 256  # keys
_ROOM = "moerun_room"  # attribute of a cache's layer


def make_room(layer: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengthens a layer's keys and values by `tokens`, whose contents are yet to be written.

    The layer's tensors become a part of longer ones, which are returned from where that part began:
    [sequences, heads, room, width]. A layer with a sliding window forgets what leaves it, at the front. Where
    its tensors are not that part any more (selected, copied, repeated), or shorter than they were (cropped:
    somebody may have kept the longer ones), they are copied to a new place first, as transformers does for
    every token.
    """
    past = layer.keys.shape[2]
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is None or not room.holds(layer) or not room.fits(past, tokens):
        room = _Room.around(layer, tokens)
        setattr(layer, _ROOM, room)
    begin, end = room.first, room.first + past + tokens
    if layer.is_sliding:
        layer.cumulative_length += tokens
        room.first = max(begin, end - layer.sliding_window + 1)
    room.filled = end
    layer.keys = room.front_keys = room.keys.narrow(2, room.first, end - room.first)
    layer.values = room.front_values = room.values.narrow(2, room.first, end - room.first)
    return (room.keys[:, :, begin:], room.values[:, :, begin:]) if begin else (room.keys, room.values)


def give_back_room(layer: Any, tokens: int) -> None:
    """Takes back the latest `tokens` that make_room has added to a layer that keeps all keys."""
    length = layer.keys.shape[2] - tokens
    layer.keys, layer.values = layer.keys.narrow(2, 0, length), layer.values.narrow(2, 0, length)
    reuse_room(layer)


def reuse_room(layer: Any) -> None:
    """Says of a cropped layer that nobody has kept what was behind its end: it may be overwritten."""
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is not None and room.holds(layer):
        room.filled = room.first + layer.keys.shape[2]


@dataclasses.dataclass
class _Room:
    """Keys and values with room behind those that are there."""

    keys: torch.Tensor
    values: torch.Tensor
    first: int = 0  # column of the layer's first
    filled: int = 0  # end of the columns that were written
    front_keys: torch.Tensor | None = None  # what the layer was given last
    front_values: torch.Tensor | None = None

    @staticmethod
    def around(layer: Any, tokens: int) -> _Room:
        """With a copy of the layer's."""
        past = layer.keys.shape[2]
        size = past + max(past // 2, LEAST_ROOM) + tokens

        def copied(t: torch.Tensor) -> torch.Tensor:
            longer = t.new_empty((*t.shape[:2], size, t.shape[3]))
            longer[:, :, :past] = t
            return longer

        return _Room(copied(layer.keys), copied(layer.values))

    def holds(self, layer: Any) -> bool:
        if layer.keys is self.front_keys and layer.values is self.front_values:
            return True
        return _begins_at(layer.keys, self.keys, self.first) and _begins_at(
            layer.values, self.values, self.first
        )

    def fits(self, past: int, tokens: int) -> bool:
        """Whether `tokens` columns behind `past` are there and belong to nobody."""
        return self.filled <= self.first + past <= self.keys.shape[2] - tokens


def _begins_at(part: torch.Tensor, room: torch.Tensor, column: int) -> bool:
    return (
        part.data_ptr() == room.data_ptr() + column * room.stride(2) * room.element_size()
        and part.stride() == room.stride()
        and part.shape[:2] == room.shape[:2]
        and part.dtype is room.dtype
    )
