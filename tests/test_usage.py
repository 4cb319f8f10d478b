"""The usage table shows every layer and expert, and hides none that worked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moerun.usage import MAX_BARS, usage_table


def test_by_example() -> None:
    table = usage_table({0: np.array([8, 0, 1, 4]), 11: np.zeros(4, np.int64)})
    assert table.splitlines() == [
        "layer  experts used  busiest expert  tokens per expert",
        "    0        3 of 4        #0 61.5%  █ ▁▄",
        "   11        0 of 4            none      ",
    ]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300))
def test_bars(tokens: list[int]) -> None:
    line = usage_table({3: np.array(tokens)}).splitlines()[1]
    bars = line[-min(len(tokens), MAX_BARS) :]
    groups = np.array_split(tokens, len(bars))
    assert [bar != " " for bar in bars] == [bool(group.any()) for group in groups]
    assert ("█" in bars) == any(tokens)
