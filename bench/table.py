"""The one printer of all tables: columns of fixed width, so that a row appears as soon as it is measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TextIO

from bench.rounds import Spread


@dataclass(frozen=True)
class Column:
    head: str
    width: int = 0  # at least the head's
    left: bool = False  # numbers stand to the right

    def align(self, text: str) -> str:
        width = max(self.width, len(self.head))
        return text.ljust(width) if self.left else text.rjust(width)


@dataclass(frozen=True)
class Table:
    """Prints its title and heads at once, then a line per call of `row`."""

    title: str
    columns: list[Column]
    out: TextIO = field(default_factory=lambda: sys.stdout)

    def __post_init__(self) -> None:
        heads = "  ".join(column.align(column.head) for column in self.columns).rstrip()
        print(f"\n{self.title}\n{heads}\n{'-' * len(heads)}", file=self.out, flush=True)

    def row(self, *cells: str) -> None:
        pairs = zip(self.columns, cells, strict=True)
        print("  ".join(column.align(cell) for column, cell in pairs).rstrip(), file=self.out, flush=True)


def number(value: float) -> str:
    """Three significant digits, without exponents: 0.812, 8.12, 81.2, 812, 8120."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio(spread: Spread | None) -> str:
    """'1.53x [1.41..1.60]', or n/a."""
    return "n/a" if spread is None else f"{spread.median:.2f}x [{spread.p10:.2f}..{spread.p90:.2f}]"


def percent(spread: Spread) -> str:
    """'91 % [88..94]' from fractions."""
    return f"{spread.median:.0%} [{100 * spread.p10:.0f}..{100 * spread.p90:.0f}]".replace("%", " %")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
