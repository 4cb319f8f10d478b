"""The ``moerun`` command. A subcommand is a module with ``add_parser(subparsers, common)`` and ``run(args)``.

Heavy imports (torch, transformers, the C++ core) stay inside ``run``, so that --help and info are quick.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import moerun
from moerun.cli import doctor, generate, info, replay, trace, trace_plot, tune_threshold
from moerun.cli.errors import run_guarded

COMMANDS = (generate, tune_threshold, info, doctor, trace, replay, trace_plot)

EXAMPLES = """\
examples:
  moerun generate ./OLMoE-1B-7B "The capital of France is"
  moerun info ./OLMoE-1B-7B
  moerun doctor
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug",
        action="store_true",
        default=os.environ.get("MOERUN_DEBUG", "") not in ("", "0"),
        help="show tracebacks of errors (also: MOERUN_DEBUG=1)",
    )
    parser = argparse.ArgumentParser(
        prog="moerun",
        description="Runs Mixture-of-Experts models whose experts do not fit the GPU, or without one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"moerun {moerun.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see cli/errors.py)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # models write characters that not every terminal has
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or what is wrong
        return stop.code if isinstance(stop.code, int) else 2
    return run_guarded(lambda: args.run(args), args.debug)
