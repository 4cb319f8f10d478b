"""Plain text for terminals and logs: sizes, aligned tables. No colours, no box drawing."""

from __future__ import annotations

from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes for people, in binary units: ``size(1536) == "1.5 KiB"``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while round(count, 1) >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.1f}".removesuffix(".0") + f" {units[0]}"


def seconds(value: float) -> str:
    """A duration for people: ``"380 ms"``, ``"2.41 s"``."""
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def plural(count: int, noun: str) -> str:
    """``plural(1, "thread") == "1 thread"``, ``plural(2, "thread") == "2 threads"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(rows: Sequence[Sequence[str]], align: str, indent: str = "") -> str:
    """Columns two spaces apart, each as wide as its widest cell.

    Parameters
    ----------
    rows
        Cells; rows may be shorter than ``align``.
    align
        One letter per column, "l" or "r".
    """
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(row, widths, align, strict=False)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
