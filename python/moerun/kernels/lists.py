"""The lists of a step (contract.py), made in numpy: for the reference launcher, benches and tests.

The engine's scheduler writes the same lists in C++.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moerun.kernels.contract import TILE_FIELDS


@dataclass(frozen=True)
class StepLists:
    """One launch's lists; all experts of the step in it."""

    tiles: np.ndarray  # int32 [tiles, 6]
    pair_token: np.ndarray  # int32 [P]
    pair_weight: np.ndarray  # fp32 [P]
    token_rows: np.ndarray  # int32 [tokens, top_k, 2]

    @property
    def pairs(self) -> int:
        return len(self.pair_token)


def step_lists(
    ids: np.ndarray,
    weights: np.ndarray,
    slots: Mapping[int, int],
    inter: int,
    tile_tokens: int,
    split: int = 1,
    ranges: Mapping[int, tuple[int, int]] | None = None,
) -> StepLists:
    """Returns the lists of all pairs whose expert has a slot, in the order of `slots`.

    Parameters
    ----------
    ids, weights
        The routing [tokens, top_k]; ids integer, weights fp32. Ids without a slot are left out.
    slots
        Expert -> slot.
    inter, tile_tokens, split
        I; most pairs of a tile; rows of y per pair (`split` of the down kernel).
    ranges
        Expert -> its part [begin, end) of the intermediate dimension; the whole of it where it is absent.
    """
    tokens, top_k = ids.shape
    token_rows = np.zeros((tokens, top_k, 2), np.int32)
    tiles: list[Sequence[int]] = []
    pair_token: list[int] = []
    pair_weight: list[float] = []
    for expert, slot in slots.items():
        begin, end = (ranges or {}).get(expert, (0, inter))
        where = np.argwhere(ids == expert)
        for at in range(0, len(where), tile_tokens):
            some = where[at : at + tile_tokens]
            first = len(pair_token)
            tiles.append((slot, first, len(some), begin, end, first * split))
            for token, choice in some:
                token_rows[token, choice] = (len(pair_token) * split, split)
                pair_token.append(int(token))
                pair_weight.append(float(weights[token, choice]))
    return StepLists(
        np.array(tiles, np.int32).reshape(-1, len(TILE_FIELDS)),
        np.array(pair_token, np.int32),
        np.array(pair_weight, np.float32),
        token_rows,
    )
