"""The machine's own limits: how fast the same threads read memory, and multiply and add in registers.

Measured in short slices between the measurements they are compared with (rounds.py), by the engine's own
loads and multiply-adds (cpu/measure.h).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from moerun import _core, machine

SLICE_S = 0.012  # hundreds of MB read: long enough to be steady, short enough for neighbours to be the same


@dataclass(frozen=True)
class Limit:
    """What the machine could do at most, at one moment."""

    read_gb_per_s: float
    dot_gflop_per_s: float  # of what the kernels multiply

    def best(self, other: Limit) -> Limit:
        return Limit(
            max(self.read_gb_per_s, other.read_gb_per_s), max(self.dot_gflop_per_s, other.dot_gflop_per_s)
        )

    def seconds(self, weight_bytes: float, operations: float) -> tuple[float, str]:
        """The least time for this much work, and which of the two limits it is: "read" or "dot"."""
        read_s = weight_bytes / (self.read_gb_per_s * 1e9)
        dot_s = operations / (self.dot_gflop_per_s * 1e9)
        return max((read_s, "read"), (dot_s, "dot"))


class LimitMeter:
    """Measures what `threads` threads can do with the instruction set `isa` and one format of weights.

    ``dot_type`` is what the kernels for that format multiply: fp32, bf16, or int8, whose peak is the highest.
    """

    def __init__(self, threads: int, weight_format: str, isa: str = "") -> None:
        self.threads = threads
        self._meter = _shared_meter(threads, isa)
        self.dot_type = self._meter.dot_type(getattr(_core.WeightFormat, weight_format))

    def measure(self) -> Limit:
        return Limit(self._meter.read(SLICE_S), self._meter.dot(self.dot_type, SLICE_S))


@functools.lru_cache(maxsize=2)  # each holds a buffer of half a GiB or more
def _shared_meter(threads: int, isa: str) -> _core.LimitMeter:
    l3_bytes, free = _core.cpu_info()["l3_bytes"], machine.memory().available_bytes
    return _core.LimitMeter(threads, machine.read_buffer_bytes(l3_bytes, free, threads), isa)
