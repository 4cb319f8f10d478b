"""``moerun replay``: what a recorded routing would cost on a given machine under different systems."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moerun.cli import arguments

HEAD = ("cache", "system", "TTFT ms", "ms/token", "hits", "makespan ms", "CPU idle", "GPU idle", "PCIe idle")
DEFAULT_SYSTEMS = ("kTransformers", "HybriMoE", "ours", "Belady + exact", "perfect prefetch")


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun replay`` to the command line."""
    parser = subparsers.add_parser(
        "replay",
        parents=[common],
        help="play a routing trace against a hardware profile",
        description="Plays a routing trace against a hardware profile on a virtual clock, with the engine's "
        "own policies. Times are simulated.",
    )
    parser.add_argument("trace", type=Path, help="a trace of `moerun trace` (.npz)")
    parser.add_argument("--profile", default="rtx4090-ddr5", help="name of a machine, or a JSON file")
    parser.add_argument(
        "--shape", help="price the experts as this model's (default: the model that the trace names)"
    )
    parser.add_argument(
        "--cache-ratio",
        type=arguments.fraction,
        nargs="+",
        default=[0.25, 0.5, 0.75],
        help="share of the experts that is cached",
    )
    parser.add_argument("--schedule", nargs="+", default=list(DEFAULT_SYSTEMS), help="systems to compare")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, help="write a bar chart of the times (needs matplotlib)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay the trace once per system and size of cache, and print a table."""
    from moerun.replay.experiments import compare
    from moerun.replay.profile import load_profile
    from moerun.replay.systems import find_system
    from moerun.replay.tables import markdown
    from moerun.replay.trace import Trace

    trace = Trace.load(args.trace)
    systems = [find_system(name) for name in args.schedule]
    rows = compare(trace, args.shape, load_profile(args.profile), systems, args.cache_ratio)
    if args.plot:
        from moerun.replay.plots import bars

        bars(rows, args.plot)
    if args.json:
        print(json.dumps({"trace": str(args.trace), "profile": args.profile, "rows": rows}, indent=2))
        return 0
    print(
        markdown(
            [
                "cache",
                "system",
                "TTFT ms",
                "ms/token",
                "hits",
                "makespan ms",
                "CPU idle",
                "GPU idle",
                "PCIe idle",
            ],
            [
                [
                    f"{row['cache_ratio']:.0%}",
                    row["system"],
                    f"{row['prefill']['step_ms']:.2f}" if row["prefill"]["steps"] else "-",
                    f"{row['decode']['step_ms']:.2f}" if row["decode"]["steps"] else "-",
                    f"{row['decode']['hit_rate']:.1%}",
                    f"{row['decode']['makespan_ms']:.2f}",
                    *(f"{row['decode']['idle'][resource]:.0%}" for resource in ("cpu", "gpu", "pcie")),
                ]
                for row in rows
            ],
        )
    )
    return 0
