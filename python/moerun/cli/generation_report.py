"""What ``moerun generate`` says about a generation: speed, the experts' part of the time, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moerun import machine
from moerun.cli import text
from moerun.cli.stream import Timing

if TYPE_CHECKING:
    import numpy as np


class ExpertClock:
    """How long the experts of an engine have computed, in the prefill and after it.

    Parameters
    ----------
    stats
        ``engine.stats`` of an engine that has done nothing yet.
    """

    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self.stats = stats
        self._prefill_s = 0.0

    def prefill_is_over(self) -> None:
        """Book what the experts have taken so far as the prefill's."""
        self._prefill_s = self._total_s()

    def seconds(self) -> tuple[float, float]:
        """Of the prefill, and of all that came after it."""
        return self._prefill_s, self._total_s() - self._prefill_s

    def tokens(self) -> list[np.ndarray]:
        """Per layer, how many tokens each expert has served, int64 [E]."""
        return [layer["expert_tokens"] for layer in self.stats()["layers"]]

    def _total_s(self) -> float:
        return sum(layer["seconds"] for layer in self.stats()["layers"])


def figures(
    timing: Timing, experts: ExpertClock, load_s: float, gpu_name: str | None = None
) -> dict[str, Any]:
    """What is known after a generation, ready for JSON; units in the names of the keys."""
    memory, stats = machine.process_memory(), experts.stats()
    prefill_experts_s, decode_experts_s = experts.seconds()
    return {
        "threads": stats["cpu_threads"],
        "isa": stats["isa"],
        "load_s": load_s,
        "prompt_tokens": timing.prompt_tokens,
        "prefill_s": timing.prefill_s,
        "prefill_experts_s": prefill_experts_s,
        "prefill_tokens_per_s": timing.prefill_tokens_per_s,
        "new_tokens": timing.new_tokens,
        "decode_s": timing.decode_s,
        "decode_experts_s": decode_experts_s,
        "decode_tokens_per_s": timing.decode_tokens_per_s,
        "peak_memory_bytes": memory.peak_bytes,
        "mapped_files_bytes": memory.file_bytes,
        "gpu_name": gpu_name,
        "gpu": stats.get("gpu"),  # what Engine.stats says of it
    }


def render(report: dict[str, Any]) -> str:
    """The figures as text for people. The first new token belongs to the prefill."""
    phases = [phase_row("prefill", report["prompt_tokens"], report)]
    if report["new_tokens"] > 1:
        phases.append(phase_row("decode", report["new_tokens"] - 1, report))
    mapped = text.size(report["mapped_files_bytes"])
    rest = [
        ["load", text.seconds(report["load_s"])],
        ["peak memory", f"{text.size(report['peak_memory_bytes'])} (mapped files, at the end: {mapped})"],
        ["kernels", f"{report['isa']}, {text.plural(report['threads'], 'thread')}"],
    ]
    if report["gpu_name"] is not None:
        slots = text.plural(report["gpu"]["slots"], "slot")
        rest.append(["GPU", f"{report['gpu_name']}, {slots} for experts"])
    return text.table(phases, "lrrrl") + "\n" + text.table(rest, "ll")


def phase_row(phase: str, tokens: int, report: dict[str, Any]) -> list[str]:
    """One line on the prefill or the decode."""
    seconds = report[f"{phase}_s"]
    share = 100 * report[f"{phase}_experts_s"] / seconds if seconds > 0 else 0.0
    speed = f"{report[f'{phase}_tokens_per_s']:.1f} tokens/s"
    return [phase, text.plural(tokens, "token"), text.seconds(seconds), speed, f"{share:.0f} % in experts"]
