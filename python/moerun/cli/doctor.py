"""``moerun doctor``: what this machine has, what it can do at most, and what to put right."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import sys
from typing import Any

import moerun
from moerun import machine
from moerun.cli import text
from moerun.cli.calibration_report import DEFAULT_SHAPES, calibrations
from moerun.cli.calibration_report import render as render_calibrations
from moerun.layer_spec import WEIGHT_FORMATS

MEASURE_SECONDS = 1.0  # per measurement
QUICK_SECONDS = 0.1
NOISY_PERCENT = 15.0  # heuristic: a quiet machine scatters by less than 5
PACKAGES = ("torch", "transformers", "triton", "safetensors", "numpy", "matplotlib")
MIN_TRANSFORMERS = (5, 7)


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        parents=[common],
        help="what this machine has and can do, and what is missing",
        description="Shows processor, kernels, memory, software and GPU, measures the read bandwidth and the "
        "dot-product peaks (about 8 seconds), and says what to put right.",
    )
    parser.add_argument("--quick", action="store_true", help="measure for a tenth of the time, less exactly")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--calibrate",
        nargs="*",
        metavar="CKPT|SHAPE",
        help="instead of all this, time what experts cost on this machine, and keep that for later engines: "
        f"those of a checkpoint, or of a shape such as Mixtral-8x7B (default: {', '.join(DEFAULT_SHAPES)})",
    )
    parser.add_argument(
        "--experts",
        choices=WEIGHT_FORMATS,
        metavar="FORMAT",
        help="with --calibrate: the experts' format (default: as saved; bf16 for a shape)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine the machine and print the report."""
    if args.calibrate is not None:
        reports = calibrations(args.calibrate or DEFAULT_SHAPES, args.experts)
        print(json.dumps(reports, indent=2) if args.json else render_calibrations(reports))
        return 0
    if sys.stderr.isatty():
        print("measuring, this takes a few seconds ...", file=sys.stderr)
    report = examine(QUICK_SECONDS if args.quick else MEASURE_SECONDS)
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 0


def examine(seconds: float) -> dict[str, Any]:
    """Everything that doctor reports, ready for JSON; sizes in bytes, units in the names of the keys.

    Parameters
    ----------
    seconds
        How long to measure each limit, for one thread and again for all.

    Raises
    ------
    ValueError
        ``MOERUN_ISA`` names kernels that this machine lacks.
    """
    from moerun import _core

    cpu, memory, openmp = _core.cpu_info(), machine.memory(), _core.openmp_runtime()
    thread_counts = sorted({1, cpu["usable_cores"]}) if has_openmp(openmp) else [1]
    report: dict[str, Any] = {
        "moerun": moerun.__version__,
        "cpu": cpu,
        "kernels": choose_kernels(),
        "memory": {"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes},
        "openmp": openmp,
        "limits": [machine.measure_limits(threads, seconds=seconds) for threads in thread_counts],
        "packages": {name: installed_version(name) for name in PACKAGES},
        "gpu": _core.probe_gpu(),
    }
    report["advice"] = advice(report)
    return report


def choose_kernels() -> dict[str, Any]:
    """Which row of the kernel table an engine uses here, and why."""
    from moerun import _core

    forced = os.environ.get("MOERUN_ISA")
    available = _core.available_isas()
    chosen = _core.choose_isa()
    reason = "named by MOERUN_ISA" if forced else "the fastest that this processor runs"
    return {"chosen": chosen, "reason": reason, "available": available}


def has_openmp(runtime: str) -> bool:
    """Whether the core has found an OpenMP runtime: it gives the runtime's path, or "none" and the reason."""
    return not runtime.startswith("none")


def installed_version(package: str) -> str | None:
    """Version of an installed package without importing it, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def advice(report: dict[str, Any]) -> list[str]:
    """What could be put right, most important first; pure."""
    lines = []
    kernels, packages = report["kernels"], report["packages"]
    if kernels["available"][0] == "ref":
        lines.append("this processor has no AVX2: only the slow reference kernels run here")
    elif kernels["chosen"] != kernels["available"][0]:
        lines.append(
            f"MOERUN_ISA holds the kernels at {kernels['chosen']}; unset it to use {kernels['available'][0]}"
        )
    if not has_openmp(report["openmp"]):
        lines.append(
            "no OpenMP runtime was found, so the engine has one thread only: install torch or libgomp1"
        )
    if packages["transformers"] is None:
        lines.append("transformers is missing, generate needs it: pip install 'moerun[hf]'")
    elif version_numbers(packages["transformers"]) < MIN_TRANSFORMERS:
        wanted = ".".join(map(str, MIN_TRANSFORMERS))
        lines.append(
            f"transformers {packages['transformers']} is too old, generate needs {wanted}: "
            "pip install -U 'moerun[hf]'"
        )
    if report["gpu"]["devices"] and packages["triton"] is None:
        lines.append("triton is missing, the GPU kernels need it: pip install 'moerun[gpu]'")
    if busy := signs_of_other_work(report["limits"]):
        lines.append(f"{busy}: something else was running; measure again on a quiet machine")
    return lines


def signs_of_other_work(limits: list[dict[str, Any]]) -> str:
    """Why the measured limits look disturbed; empty if they do not."""
    spread = max(measured["read_gb_per_s"]["spread_percent"] for measured in limits)
    if spread > NOISY_PERCENT:
        return f"the read bandwidth scattered by {spread:.0f} %"
    one, all_threads = (limits[i]["dot_gflop_per_s"]["fp32"]["median"] for i in (0, -1))
    if all_threads < 0.9 * one:  # even two threads of one core do as much as one
        return "all threads together computed less than one alone"
    return ""


def version_numbers(version: str) -> tuple[int, ...]:
    """``version_numbers("5.7.0rc1") == (5, 7, 0)``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def render(report: dict[str, Any]) -> str:
    """The report as text for people."""
    sections = [
        f"moerun {report['moerun']}",
        text.table(machine_rows(report), "ll"),
        text.table(limit_rows(report["limits"]), "llrrrr"),
        text.table(software_rows(report), "ll"),
    ]
    if report["advice"]:
        sections.append("Advice\n" + "\n".join(f"  - {line}" for line in report["advice"]))
    return "\n\n".join(sections)


def machine_rows(report: dict[str, Any]) -> list[list[str]]:
    """Processor, kernels and memory."""
    cpu, kernels, memory = report["cpu"], report["kernels"], report["memory"]
    caches = [f"L1d {text.size(cpu['l1d_bytes'])}", f"L2 {text.size(cpu['l2_bytes'])}"]
    if cpu["l3_bytes"]:
        caches.append(f"L3 {text.size(cpu['l3_bytes'])}")
    nodes = text.plural(len(cpu["nodes"]), "NUMA node")
    if len(cpu["nodes"]) > 1:
        nodes += " (" + "; ".join(f"node {n['id']}: {cpu_list(n['cpus'])}" for n in cpu["nodes"]) + ")"
    others = [isa for isa in kernels["available"] if isa != kernels["chosen"]]
    also = f" (also here: {', '.join(others)})" if others else ""
    return [
        ["Processor", cpu["model"]],
        [
            "  cores",
            f"{cpu['usable_cores']} usable, {nodes}",
        ],
        ["  caches", ", ".join(caches)],
        ["  instructions", ", ".join(cpu["instruction_sets"]) or "none beyond x86-64"],
        ["  kernels", f"{kernels['chosen']}, {kernels['reason']}{also}"],
        [
            "Memory",
            f"{text.size(memory['total_bytes'])}, {text.size(memory['available_bytes'])} available",
        ],
        ["OpenMP", report["openmp"]],
    ]


def cpu_list(cpus: list[int]) -> str:
    """``cpu_list([0, 1, 2, 8]) == "0-2,8"``; ascending numbers."""
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and cpu == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], cpu]
        else:
            ranges.append([cpu])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def limit_rows(limits: list[dict[str, Any]]) -> list[list[str]]:
    """Measured limits, one row per quantity and number of threads."""

    def row(name: str, unit: str, threads: int, figure: dict[str, float]) -> list[str]:
        spread = f"{figure['spread_percent']:.0f} %"
        return [f"  {name}", unit, str(threads), f"{figure['median']:.1f}", f"{figure['best']:.1f}", spread]

    rows = [["Limits, measured", "", "threads", "median", "best", "spread"]]
    rows += [row("memory read", "GB/s", m["threads"], m["read_gb_per_s"]) for m in limits]
    for dtype in limits[0]["dot_gflop_per_s"]:
        unit = "GOP/s" if dtype == "int8" else "GFLOP/s"
        rows += [row(f"dot {dtype}", unit, m["threads"], m["dot_gflop_per_s"][dtype]) for m in limits]
    return rows


def software_rows(report: dict[str, Any]) -> list[list[str]]:
    """Packages and GPU."""
    rows = [["Software", f"Python {'.'.join(map(str, sys.version_info[:3]))}"]]
    rows += [[f"  {name}", version or "not installed"] for name, version in report["packages"].items()]
    gpu = report["gpu"]
    if not gpu["devices"]:
        return [*rows, ["GPU", f"none: {gpu['reason']}"]]
    major, minor = gpu["driver_version"] // 1000, gpu["driver_version"] % 1000 // 10
    rows.append(["GPU", f"driver for CUDA {major}.{minor} ({gpu['library']})"])
    for index, device in enumerate(gpu["devices"]):
        capability = f"compute capability {device['compute_capability']}"
        rows.append(
            [f"  device {index}", f"{device['name']}, {capability}, {text.size(device['memory_bytes'])}"]
        )
    return rows
