"""The PCIe link of the replay: what it moves while no demand copy does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Transfer:
    """A copy ahead of demand: to which layer, into whose slot, and how long it still takes."""

    layer: int
    expert: int
    victim: int
    left_us: float
    promotion: bool


class Pcie:
    """Copies ahead of demand, in order: prefetches, then promotions. Knows when it was last idle."""

    def __init__(self, quiet_us: float) -> None:
        """``quiet_us``: if positive, no chunk is begun that would not end in time; chunks take that long."""
        self.quiet_us = quiet_us
        self.now_us = 0.0
        self.prefetches: list[Transfer] = []
        self.promotions: list[Transfer] = []
        self.busy_us = 0.0

    def _next(self) -> Transfer | None:
        return next(iter(self.prefetches or self.promotions), None)

    def run_until(self, until_us: float) -> Iterator[Transfer]:
        """Moves data up to a time; yields what has arrived."""
        while (transfer := self._next()) is not None and self.now_us < until_us:
            spent = min(transfer.left_us, until_us - self.now_us)
            if self.quiet_us and spent < transfer.left_us:
                spent -= spent % self.quiet_us
                if spent == 0:
                    break
            transfer.left_us -= spent
            self.now_us += spent
            self.busy_us += spent
            if transfer.left_us <= 1e-9:
                (self.promotions if transfer.promotion else self.prefetches).remove(transfer)
                yield transfer
        self.now_us = max(self.now_us, until_us)

    def finish_chunk(self, copy_us: float, chunk_us: float) -> float:
        """The chunk on the way cannot be stopped: the time until it has arrived."""
        transfer = self._next()
        if self.quiet_us or transfer is None or transfer.left_us >= copy_us:
            return 0.0
        return min(transfer.left_us, chunk_us - (copy_us - transfer.left_us) % chunk_us)

    def pending(self, layer: int) -> list[int]:
        return [t.expert for t in (*self.prefetches, *self.promotions) if t.layer == layer]
