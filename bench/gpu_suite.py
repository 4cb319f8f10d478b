"""All that a real GPU has to say, in one command: python -m bench.gpu_suite --out DIR. Under ten minutes.

Sections run in processes of their own and within their share of the time; one that fails is reported and the
others go on. A short table comes last, everything is in DIR/gpu_suite.json. Exit code 1 if there is no GPU or
a section failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import report
from bench.gpu import card, copies, kernels, layer_calls, models, pytests
from bench.gpu.section import Deadline, Section, record
from bench.gpu.suite import run_all
from bench.gpu.summary import exit_code, print_summary

SECONDS = 480.0  # for all sections; with building and starting under ten minutes
SECTIONS = (
    Section("card", 2, card.measure),
    Section("copies", 3, copies.measure),
    Section("tests", 8, pytests.measure),
    Section("kernels", 22, kernels.measure),
    Section("calls", 2, layer_calls.measure),
    Section("models", 13, models.measure),
)


def main() -> int:
    options = _parse()
    problem = missing_gpu()
    if problem:
        print(f"gpu_suite: {problem}", file=sys.stderr)
        return 1
    chosen = [section for section in SECTIONS if section.name in options.only]
    if options.section:
        section = next(section for section in SECTIONS if section.name == options.section)
        record(section.measure, Deadline.after(options.seconds), options.rows)
        return 0
    environment = report.environment()
    print(report.render(environment), flush=True)
    outcomes = []
    tables: dict[str, list[dict[str, object]]] = {}
    for outcome in run_all(chosen, options.seconds, "bench.gpu_suite"):
        outcomes.append(outcome)
        ended = {key: getattr(outcome, key) for key in ("section", "status", "why", "seconds")}
        tables.setdefault("sections", []).append(ended)
        tables |= {f"{outcome.section}.{name}": rows for name, rows in outcome.tables.items()}
        # after every section: what is measured is kept, whatever becomes of this process
        report.save(options.out / "gpu_suite.json", environment, {"seconds": options.seconds}, tables)
    print_summary(outcomes)
    return exit_code(outcomes)


def missing_gpu() -> str:
    """Why there is nothing to measure, and what would help; "" if there is a GPU."""
    try:
        import torch
    except ImportError:
        return "needs torch with CUDA, which is not installed: pip install torch"
    if torch.version.cuda is None:
        return f"needs torch with CUDA, but torch {torch.__version__} has none: install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and torch finds none: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    return ""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.gpu_suite", description=__doc__.splitlines()[0])
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, default=Path("gpu_suite"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all sections (default 480)")
    # How the suite starts a section's process.
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
