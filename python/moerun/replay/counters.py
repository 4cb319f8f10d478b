"""What the replay counts, per phase."""

from __future__ import annotations

from dataclasses import dataclass, field

from moerun.policy import MAX_DISTANCE


@dataclass
class Counters:
    """Sums over the measured steps of one phase. Times in microseconds."""

    steps: int = 0
    tokens: int = 0
    time_us: float = 0.0
    makespan_us: float = 0.0
    planned_us: float = 0.0
    active: int = 0
    hits: int = 0
    demand_copies: int = 0
    prefetched: int = 0
    prefetch_used: int = 0
    promoted: int = 0
    cpu_busy_us: float = 0.0
    gpu_busy_us: float = 0.0
    pcie_busy_us: float = 0.0
    predictions: list[int] = field(default_factory=lambda: [0] * MAX_DISTANCE)
    correct: list[int] = field(default_factory=lambda: [0] * MAX_DISTANCE)

    @property
    def step_us(self) -> float:
        return self.time_us / self.steps if self.steps else 0.0

    @property
    def hit_rate(self) -> float:
        return self.hits / self.active if self.active else 0.0

    def idle_share(self, resource: str) -> float:
        """Share of the time in which "cpu", "gpu" or "pcie" had nothing to do."""
        return 1 - getattr(self, f"{resource}_busy_us") / self.time_us if self.time_us else 0.0

    def report(self) -> dict[str, object]:
        """For tables and JSON."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "step_ms": self.step_us / 1e3,
            "makespan_ms": self.makespan_us / max(self.steps, 1) / 1e3,
            "planned_ms": self.planned_us / max(self.steps, 1) / 1e3,
            "hit_rate": self.hit_rate,
            "demand_copies": self.demand_copies,
            "prefetched": self.prefetched,
            "prefetch_used": self.prefetch_used,
            "promoted": self.promoted,
            "idle": {r: self.idle_share(r) for r in ("cpu", "gpu", "pcie")},
            "prediction_hit_rate": [
                c / p if p else None for c, p in zip(self.correct, self.predictions, strict=True)
            ],
        }
