"""The short table at the end: how each section ended, and the figures that one looks for first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.gpu.section import FAILED, Outcome
from bench.table import Column, Table, number

Row = dict[str, Any]

MODEL = "Qwen3-30B-A3B"
DECODE_TOKENS = (1, 4, 16)
PREFILL_TOKENS = (512, 4096)
_MOST_WHY = 110  # characters


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Prints it; at most some thirty lines."""
    table = Table(
        "summary",
        [
            Column("section", 8, left=True),
            Column("ended", 9, left=True),
            Column("s", 4),
            Column("figures", left=True),
        ],
    )
    for outcome in outcomes:
        lines = list(_FIGURES[outcome.section](outcome)) if outcome.section in _FIGURES else []
        if outcome.why:
            lines.insert(0, outcome.why[:_MOST_WHY])
        table.row(outcome.section, outcome.status, f"{outcome.seconds:.0f}", lines[0] if lines else "")
        for line in lines[1:]:
            table.row("", "", "", line)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """1 if a section failed."""
    return int(any(outcome.status == FAILED for outcome in outcomes))


def _card(outcome: Outcome) -> Iterator[str]:
    for card in outcome.tables.get("card", []):
        yield f"{card['name']}, {card['architecture']}, driver {card.get('driver_version', 'unknown')}"
    for limits in outcome.tables.get("limits", []):
        yield (
            f"memory: copy {limits['copy_gb_per_s']:.0f} GB/s, read {limits['read_gb_per_s']:.0f} GB/s; "
            f"bf16 product {limits['matmul_tflop_per_s']:.0f} TFLOP/s"
        )


def _copies(outcome: Outcome) -> Iterator[str]:
    best: dict[tuple[str, str], float] = {}
    for row in outcome.tables.get("copies", []):
        key = (row["direction"], row["memory"])
        best[key] = max(best.get(key, 0.0), row["gb_per_s"])
    if best:
        yield "at best, GB/s: " + ", ".join(f"{way} {memory} {best[way, memory]:.1f}" for way, memory in best)


def _kernels(outcome: Outcome) -> Iterator[str]:
    rows = outcome.tables.get("kernels", [])
    rivals = outcome.tables.get("rivals", [])
    wrong = [row for row in rows if row["error"]]
    if rows:
        yield f"{len(rows) - len(wrong)} of {len(rows)} rows right and timed"
    for row in wrong[:3]:
        yield f"{row['model']} {row['weight_format']} {row['tokens']} tokens: {row['error'][:_MOST_WHY]}"
    of_model = [row for row in rows if row["model"] == MODEL and not row["error"]]
    for weight_format in dict.fromkeys(row["weight_format"] for row in of_model):
        by_tokens = {row["tokens"]: row for row in of_model if row["weight_format"] == weight_format}
        decode = _shares(by_tokens, DECODE_TOKENS, "of_memory")
        prefill = _shares(by_tokens, PREFILL_TOKENS, "of_matmul")
        against = _against(by_tokens, rivals)
        yield f"{weight_format:9} of memory {decode}; of matmul {prefill}; grouped_mm takes {against}"


def _shares(by_tokens: dict[int, Row], tokens: Sequence[int], share: str) -> str:
    """'1: 71 %, 16: 80 %'"""
    return ", ".join(f"{n}: {by_tokens[n][share]:.0%}" for n in tokens if n in by_tokens) or "-"


def _against(by_tokens: dict[int, Row], rivals: Sequence[Row]) -> str:
    """How many times as long as ours torch's grouped_mm in bf16 takes, both in graphs."""
    times = {
        row["tokens"]: row["graph_us"]
        for row in rivals
        if row["model"] == MODEL and row["rival"] == "grouped_mm" and row["graph_us"]
    }
    ratios = {n: times[n] / row["graph_us"] for n, row in by_tokens.items() if n in times and row["graph_us"]}
    wanted = [n for n in (*DECODE_TOKENS, *PREFILL_TOKENS) if n in ratios]
    return ", ".join(f"{n}: {number(ratios[n])}x" for n in wanted) or "-"


def _tests(outcome: Outcome) -> Iterator[str]:
    for row in outcome.tables.get("tests", []):
        yield f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"


def _models(outcome: Outcome) -> Iterator[str]:
    rows = outcome.tables.get("models", [])
    if rows:
        yield "decode, tokens/s: " + ", ".join(
            f"{row['setting']} {'failed' if row['error'] else number(row['decode_tokens_per_s'])}"
            for row in rows
        )
    for row in rows:
        if row["error"]:
            yield f"{row['setting']}: {row['error'][:_MOST_WHY]}"


def _calls(outcome: Outcome) -> Iterator[str]:
    for row in outcome.tables.get("calls", []):
        if row["tokens"] == 1:
            yield (
                f"a call of a layer, x on {row['x']}, 1 token: submit {row['submit_us']:.0f} us, "
                f"forward {row['returned_us']:.0f} us, done after {row['finished_us']:.0f} us"
            )


_FIGURES = {
    "card": _card,
    "copies": _copies,
    "kernels": _kernels,
    "tests": _tests,
    "calls": _calls,
    "models": _models,
}
