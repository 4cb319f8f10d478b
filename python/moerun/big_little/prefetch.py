"""What a fallback tells the engine: the experts of every layer that it is about to use.

They were chosen in the little pass, so they are known before the first layer runs; deeper layers may still
choose a little differently, as all experts change what they see. Without a GPU both calls do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from moerun.big_little.selection import Choice
    from moerun.engine import Layer


@contextmanager
def announced(
    layers: Mapping[int, Layer], choices: Mapping[int, Choice], rows: torch.Tensor | None
) -> Iterator[None]:
    """Hints the choice of the sequences `rows`, bool [B] (None: all), and keeps it resident inside.

    The favourites come first, which the little pass has brought already: they stay until the block ends.
    """
    with ExitStack() as pins:
        for number, layer in layers.items():
            if number not in choices:
                continue
            ids, weights = choices[number]
            if rows is not None:
                ids, weights = ids[rows], weights[rows]
            pins.enter_context(layer.pinned(ids))
            layer.hint(ids, weights)
        yield
