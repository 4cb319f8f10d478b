"""A saved result as Markdown for the README: python -m bench.readme_table bench/results/NAME.json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.report import disturbance
from bench.table import number


def main() -> None:
    parser = argparse.ArgumentParser("bench.readme_table", description=__doc__)
    parser.add_argument("result", type=Path, help="a file that bench.run --json or --save has written")
    result = json.loads(parser.parse_args().result.read_text())
    tables = result["tables"]
    print(f"{_origin(result)}{disturbance(tables)}\n")
    for name in ("layers", "kt-kernel"):
        if tables.get(name):
            print("\n".join(layer_table(tables[name])) + "\n")
    if tables.get("peer models"):
        print("\n".join(peer_model_table(tables["peer models"])) + "\n")
    if tables.get("models"):
        print("\n".join(model_table(tables["models"])) + "\n")


def layer_table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """One line per row, ratios as "times as fast as"."""
    baselines = sorted({name for row in rows for name in row["ratio"]}, reverse=True)
    heads = ["model", "format", "threads", "routing", "tokens", "ms", "GB/s", "GFLOP/s", "of the limit"]
    yield from _head([*heads, *(f"vs {name}" for name in baselines)], left=2)
    for row in rows:
        ratios = [f"{row['ratio'][n]['median']:.1f}x" if n in row["ratio"] else "n/a" for n in baselines]
        yield _line(
            row["model"],
            row["weight_format"],
            row["threads"],
            row["routing"],
            row["tokens"],
            number(row["ours_ms"]),
            f"{row['gb_per_s']:.1f}",
            f"{row['gflop_per_s']:.0f}",
            f"{row['of_limit']['median']:.0%} ({_limit(row)})".replace("%", " %"),
            *ratios,
        )


def model_table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Whole models, ours first."""
    yield from _head(["implementation", "threads", "prefill tokens/s", "decode tokens/s"], left=1)
    for row in rows:
        yield _line(
            row["implementation"],
            row["threads"],
            f"{row['prefill_tokens_per_s']:.0f}",
            f"{row['decode_tokens_per_s']:.1f}",
        )


def peer_model_table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Whole models beside other engines, ours first in each format."""
    heads = ["format", "implementation", "threads", "MB/token", "prefill tokens/s", "decode tokens/s"]
    yield from _head([*heads, "prefill vs it", "decode vs it"], left=2)
    for row in rows:
        yield _line(
            row["weight_format"],
            f"{row['implementation']} {row['commit']}".strip(),
            row["threads"],
            f"{row['step_bytes'] / 1e6:.0f}",
            f"{row['prefill_tokens_per_s']:.0f}",
            f"{row['decode_tokens_per_s']:.1f}",
            f"{row['prefill_ratio']['median']:.2f}x",
            f"{row['decode_ratio']['median']:.2f}x",
        )


def _limit(row: dict[str, Any]) -> str:
    """What bounds a row: "read", or "int8 dot"; just "dot" in files that do not say of what."""
    return f"{row['dot_type']} dot" if row["bound_by"] == "dot" and "dot_type" in row else row["bound_by"]


def _origin(result: dict[str, Any]) -> str:
    m, commit, torch = result["machine"], result["commit"], result["versions"]["torch"]
    dirty = " with uncommitted changes" if commit["dirty"] else ""
    return (
        f"{m['cpu']}, {m['usable_cores']} cores, kernels {m['kernels']}, torch {torch}, "
        f"commit {commit['hash'][:10]}{dirty}."
    )


def _head(heads: list[str], left: int) -> Iterable[str]:
    yield _line(*heads)
    yield _line(*("---" if i < left else "---:" for i in range(len(heads))))


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
