"""What goes with every figure: the machine, the commit and the versions; and results as JSON files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.rounds import Spread
from moerun import _core, machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
QUIET = 0.03  # heuristic: above this share of waiting, a row says little
_PACKAGES = ("moerun", "numpy", "torch", "transformers", "triton")


@dataclass(frozen=True)
class LayerRow:
    """One measured layer. Times are medians per step; ratios say how many times as long a baseline takes."""

    table: str
    model: str
    weight_format: str
    isa: str
    threads: int
    routing: str
    tokens: int
    ours_ms: float
    baseline_ms: dict[str, float]  # those that ran
    ratio: dict[str, Spread]  # likewise
    gb_per_s: float
    gflop_per_s: float
    of_limit: Spread  # fraction
    bound_by: str  # "read" or "dot"
    dot_type: str  # whose peak the limit is: "fp32", "bf16" or "int8"
    read_limit_gb_per_s: float
    dot_limit_gflop_per_s: float
    active_experts: float  # distinct, mean over the steps
    waiting: float  # fraction of our threads' time that they waited for a core that others had
    rounds: int  # that were kept
    steps_per_round: int


def environment() -> dict[str, Any]:
    """Where and what is measured."""
    cpu = _core.cpu_info()
    return {
        "machine": {
            "cpu": cpu["model"],
            "usable_cores": cpu["usable_cores"],
            "numa_nodes": len(cpu["nodes"]),
            "l2_bytes": cpu["l2_bytes"],
            "l3_bytes": cpu["l3_bytes"],
            "memory_bytes": machine.memory().total_bytes,
            "kernels": _core.choose_isa(),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def render(environment: dict[str, Any]) -> str:
    """The environment as lines of text."""
    m, commit = environment["machine"], environment["commit"]
    mib = {level: m[f"{level}_bytes"] / 2**20 for level in ("l2", "l3")}
    return "\n".join(
        (
            f"machine   {m['cpu']}, {m['usable_cores']} cores, L2 {mib['l2']:g} MiB, L3 {mib['l3']:g} MiB, "
            f"{m['memory_bytes'] / 2**30:.0f} GiB memory, kernels {m['kernels']}, load {m['load_before']}",
            f"commit    {commit['hash']}{' with uncommitted changes' if commit['dirty'] else ''}",
            "versions  "
            + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        )
    )


def disturbance(results: dict[str, Any]) -> str:
    """A warning about rows that were measured while others had the cores, or nothing."""
    rows = [row if isinstance(row, dict) else asdict(row) for rows in results.values() for row in rows]
    waiting = [row[key] for row in rows for key in ("waiting", "others") if key in row]
    disturbed = sum(share > QUIET for share in waiting)
    if not disturbed:
        return ""
    return (
        f"\nOthers were busy on this machine: {disturbed} of {len(waiting)} rows lost more than "
        f"{QUIET:.0%} of a core to others. Measure those again when it is quiet."
    )


def save(path: Path, environment: dict[str, Any], options: dict[str, Any], results: dict[str, Any]) -> None:
    """Writes everything that was measured; `results` holds lists of rows (dataclasses or dicts) by table."""
    tables = {
        name: [row if isinstance(row, dict) else asdict(row) for row in rows]
        for name, rows in results.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment, "options": options, "tables": tables}, indent=1) + "\n")


def _commit() -> dict[str, Any]:
    try:
        head = _git("rev-parse", "HEAD")
        return {"hash": head, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"hash": "unknown (not a git checkout)", "dirty": False}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
