"""What a fallback or a verification tells the engine: the experts of every layer that it is about to use.

They were chosen in little passes, so they are known before the first layer runs; deeper layers may still
choose a little differently, as all experts change what they see. Without a GPU both calls do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moerun.big_little.selection import Choice
    from moerun.engine import Layer


@contextmanager
def announced(layers: Mapping[int, Layer], choices: Mapping[int, Choice]) -> Iterator[None]:
    """Hints the choices, by layer, and keeps them resident inside.

    The favourites come first, which a little pass has brought already: they stay until the block ends.
    """
    with ExitStack() as pins:
        for number, layer in layers.items():
            if number not in choices:
                continue
            ids, weights = choices[number]
            pins.enter_context(layer.pinned(ids))
            layer.hint(ids, weights)
        yield
