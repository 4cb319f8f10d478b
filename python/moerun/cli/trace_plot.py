"""``moerun trace-plot``: a picture of a timeline."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun trace-plot`` to the command line."""
    parser = subparsers.add_parser(
        "trace-plot",
        parents=[common],
        help="draw a timeline written by Engine.trace",
        description="Draws the last step of a timeline that Engine.trace wrote: a lane per CPU thread, and "
        "for the GPU, copies to it (H2D) and back (D2H).",
    )
    parser.add_argument("timeline", metavar="JSON", help="what Engine.trace wrote")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="picture (.png, .svg, .pdf)")
    parser.add_argument("--all", action="store_true", help="the whole timeline, not the last step only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the picture."""
    from moerun import timeline

    spans = timeline.read_spans(args.timeline)
    chosen = spans if args.all else timeline.last_step(spans)
    timeline.draw(chosen).savefig(args.output, dpi=150)
    print(f"{args.output}: {len(chosen)} spans")
    return 0
