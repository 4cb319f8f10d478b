"""use_huge_pages leaves what is in memory alone, and takes any range."""

from __future__ import annotations

import numpy as np
import pytest

from moerun import _core

HUGE = 2 << 20


@pytest.mark.parametrize("bytes_", [0, 1, 4096, HUGE - 1, 3 * HUGE + 12345])
def test_contents_stay(bytes_: int) -> None:
    memory = np.random.default_rng(0).integers(0, 256, bytes_ + 1, np.uint8)
    before = memory.copy()
    collapsed = _core.use_huge_pages(memory.ctypes.data, bytes_)
    assert collapsed % HUGE == 0
    assert collapsed <= bytes_
    np.testing.assert_array_equal(memory, before)


def test_read_only_files_are_left_alone(tmp_path: object) -> None:
    path = f"{tmp_path}/weights"
    np.arange(4 * HUGE, dtype=np.uint8).tofile(path)
    mapped = np.memmap(path, np.uint8, mode="r")
    _core.use_huge_pages(mapped.ctypes.data, mapped.nbytes)
    np.testing.assert_array_equal(mapped, np.arange(4 * HUGE, dtype=np.uint8))
