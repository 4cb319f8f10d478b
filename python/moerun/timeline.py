"""Draws a timeline that Engine.trace wrote: a lane per CPU thread, GPU or copy queue."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from moerun.errors import MoerunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_WIDTH = 0.003  # of the picture, so that short spans are seen


class Span(NamedTuple):
    """What a lane did from `start_us` on, in microseconds since the trace's first event."""

    row: int  # of the lane: CPU threads, GPU, copies to it, copies back
    lane: str
    name: str
    layer: int
    start_us: float
    duration_us: float


def read_spans(path: str | os.PathLike[str]) -> list[Span]:
    """The spans of a trace in Chrome's format, by start.

    Raises
    ------
    MoerunError
        The file is not such a trace, or holds no events.
    """
    try:
        with open(path, encoding="utf-8") as file:
            events: list[dict[str, Any]] = json.load(file)["traceEvents"]
        lanes = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        spans = [
            Span(e["tid"], lanes[e["tid"]], e["name"], e["args"]["layer"], e["ts"], e["dur"])
            for e in events
            if e["ph"] == "X"
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise MoerunError(f"{path} is not a timeline written by Engine.trace: {error!r}") from error
    if not spans:
        raise MoerunError(f"{path} holds no events: nothing ran before it was written")
    return sorted(spans, key=lambda span: span.start_us)


def last_step(spans: list[Span]) -> list[Span]:
    """The latest step: what follows the last time that the first layer began."""
    first = min(span.layer for span in spans)
    starts = [span.start_us for span in spans if span.layer == first]
    passes = [
        later for earlier, later in pairwise(starts) if _other_layer_between(spans, first, earlier, later)
    ]
    begin = max(passes, default=starts[0])
    return [span for span in spans if span.start_us >= begin]


def _other_layer_between(spans: list[Span], first: int, begin: float, end: float) -> bool:
    return any(span.layer != first and begin < span.start_us < end for span in spans)


def draw(spans: list[Span]) -> Figure:
    """A figure of the spans, coloured by what was done; needs the extra moerun[plot]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    lanes = dict(sorted({(span.row, span.lane) for span in spans}))
    names = sorted({span.name for span in spans})
    colours = dict(zip(names, pyplot.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    begin = min(span.start_us for span in spans)
    end = max(span.start_us + span.duration_us for span in spans)
    least_ms = LEAST_WIDTH * (end - begin) / 1e3
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.45 * len(lanes)), layout="constrained")
    for place, row in enumerate(lanes):
        for name in names:
            bars = [
                ((s.start_us - begin) / 1e3, max(s.duration_us / 1e3, least_ms))
                for s in spans
                if s.row == row and s.name == name
            ]
            axes.broken_barh(
                bars, (place - 0.4, 0.8), facecolors=colours[name], edgecolors="white", linewidth=0.4
            )
    axes.set_yticks(range(len(lanes)), list(lanes.values()))
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    keys = [Patch(color=colours[name], label=name) for name in names]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(names), frameon=False)
    return figure
