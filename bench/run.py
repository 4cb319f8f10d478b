"""The benchmarks' command line: python -m bench.run (what `make bench` calls).

Prints the machine, the commit and the versions, then the tables as they are measured. Judges nothing.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from bench import report
from bench.rounds import FOOTER, Budget
from bench.shapes import FLOATS, SHAPES
from bench.workload import ROUTINGS
from moerun import WEIGHT_FORMATS, _core

TOKENS = (1, 4, 16, 128, 512)
QUICK_TOKENS = (1, 16, 512)
KERNEL_TOKENS = (1, 128)
PARTS = ("layers", "kernels", "e2e", "peers")


def main() -> None:
    options = parse()
    environment = report.environment()
    print(report.render(environment), flush=True)
    results = measure(options)
    print(f"\n{FOOTER}{report.disturbance(results)}")
    chosen = {
        key: value for key, value in vars(options).items() if not isinstance(value, Path) and key != "save"
    }
    for path in (options.json, options.save and report.RESULTS / f"{options.save}.json"):
        if path:
            report.save(path, environment, chosen, results)
            print(f"written: {path}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.run", description=__doc__.splitlines()[0])
    cores = _core.cpu_info()["usable_cores"]
    parser.add_argument(
        "--quick", action="store_true", help="one model, three batch sizes, all cores: a minute"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: all but peers; --quick: no e2e")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="models (default: all)")
    parser.add_argument("--tokens", nargs="+", type=_positive, help=f"default: {' '.join(map(str, TOKENS))}")
    parser.add_argument(
        "--threads", nargs="+", type=_positive, help=f"default: {cores}, and 1 with uniform routing"
    )
    parser.add_argument("--routing", nargs="+", choices=ROUTINGS, help="default: both with all cores")
    parser.add_argument("--formats", nargs="+", choices=WEIGHT_FORMATS, help="default: bf16; kernels: floats")
    parser.add_argument("--seconds", type=float, help="time to measure one row (default 0.8; --quick: 0.4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--save", metavar="NAME", help="also write the results to bench/results/NAME.json")
    parser.add_argument(
        "--layers", type=_positive, default=4, help="of the whole model (default 4: 6 GB on disk)"
    )
    parser.add_argument("--vocab", type=_positive, help="words of the whole model (151936; peers: 12672)")
    for name, what in (
        ("--kt-kernel", "a Python with kt-kernel"),
        ("--llama-cpp", "the folder of its llama-bench"),
        ("--ik-llama-cpp", "likewise"),
    ):
        parser.add_argument(name, type=Path, metavar="PATH", help=f"peers: {what}, to run it beside ours")
    options = parser.parse_args()
    quick = options.quick
    options.only = options.only or ["layers", "kernels"] + ([] if quick else ["e2e"])
    options.shapes = options.shapes or (["qwen3-30b"] if quick else list(SHAPES))
    options.tokens = options.tokens or list(QUICK_TOKENS if quick else TOKENS)
    options.seconds = options.seconds or (0.4 if quick else 0.8)
    return options


def measure(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Runs the chosen parts; rows by table."""
    cores = _core.cpu_info()["usable_cores"]
    threads = options.threads or ([cores] if options.quick else sorted({cores, 1}, reverse=True))
    budget = Budget(seconds=options.seconds)
    results: dict[str, list[Any]] = {}
    if "layers" in options.only:
        from bench.layers import measure_models

        shapes = [SHAPES[name] for name in options.shapes]
        formats = options.formats or ["bf16"]
        results["layers"] = list(
            measure_models(shapes, formats, _cases(options, threads), options.tokens, budget)
        )
    if "kernels" in options.only:
        from bench.kernels import measure_kernels, measure_overhead

        formats = options.formats or list(FLOATS)
        results["kernels"] = list(measure_kernels(formats, threads[0], KERNEL_TOKENS, budget))
        results["overhead"] = list(measure_overhead(threads))
    if "e2e" in options.only:
        from bench.generate import measure_model

        results |= measure_model(threads[0], options.layers, options.vocab or 151_936)
    if "peers" in options.only:
        from bench.peers import compare_layers, compare_models

        shapes = [SHAPES[name] for name in options.shapes]
        results["kt-kernel"] = compare_layers(
            options.kt_kernel, shapes, options.formats, options.threads or [1], options.tokens, budget
        )
        results["peer models"] = compare_models(
            options.llama_cpp, options.ik_llama_cpp, options.formats, threads, options.layers, options.vocab
        )
    return results


def _cases(options: argparse.Namespace, threads: list[int]) -> list[tuple[int, str]]:
    """(threads, routing) of the layers' tables: all that was asked for, or a selection if nothing was."""
    if options.routing:
        return list(itertools.product(threads, options.routing))
    if options.threads or options.quick:
        return [(count, "uniform") for count in threads]
    return [(threads[0], "uniform"), (threads[0], "skewed"), *((count, "uniform") for count in threads[1:])]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
