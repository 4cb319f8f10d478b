"""Text for people: sizes in binary units, columns that line up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun.cli import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (32 << 20, "32 MiB"),
        (int(57.2 * 2**30), "57.2 GiB"),
        (3 << 40, "3 TiB"),
        (5000 << 40, "5000 TiB"),
        (1024**2 - 1, "1 MiB"),
    ],
)
def test_size(count, shown):
    assert text.size(count) == shown


@given(st.integers(0, 2**60))
def test_size_is_right_to_a_tenth_of_its_unit(count):
    number, unit = text.size(count).split()
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(float(number) * scale - count) <= scale * 0.0501
    assert float(number) < 1024 or unit == "TiB"


def test_seconds_and_plural():
    assert (text.seconds(0.38), text.seconds(2.412)) == ("380 ms", "2.41 s")
    assert (text.plural(1, "thread"), text.plural(2, "thread")) == ("1 thread", "2 threads")


def test_table_lines_up_columns():
    assert text.table([["a", "1"], ["bcd", "100"]], "lr") == "a      1\nbcd  100"


def test_table_takes_short_rows_and_indent_and_leaves_no_trailing_blanks():
    assert text.table([["title"], ["x", "y"]], "ll", indent="  ") == "  title\n  x      y"
