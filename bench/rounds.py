"""The method of all comparisons: interleaved rounds in one process, and the medians of the rounds' ratios.

The machines are shared, and what a neighbour takes changes from second to second. So everything that is
compared takes turns: a round is one turn of every baseline and of ours, in an order that is reversed from
round to round, with the limits measured before and after (the better of the two counts, since neighbours only
ever slow down). Of the rounds, that half is kept in which the threads of all contestants waited least for a
core (the kernel counts it; times are not looked at). Ratios are taken within a round, and their median over
the kept rounds is reported, with the 10th and 90th percentiles as the spread. A turn is several steps if
steps are short. Within a round all do the same steps; each step has a routing of its own, so that the weights
of a decode step are cold (workload.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.limits import Limit, LimitMeter

FOOTER = """\
Ratios and percentages are medians over interleaved rounds in one process (limits, baselines, ours, limits;
the order alternates); in brackets their 10th to 90th percentiles. Of all rounds, the half is kept in which
this process waited least for a core that others had; "wait" is the share of its threads' time that it waited
in those: a row with more than a few per cent says little. Every step has a new random routing over weights
that exceed the last-level cache. GB/s counts the weights of the distinct active experts, once per step;
GFLOP/s counts the three matrix products. The limit of a step is the larger of bytes / measured read bandwidth
and operations / measured dot-product peak of what the format's kernels multiply (fp32, bf16 or int8), with
the same threads in the same round; "by" says which one."""

Step = Callable[[int], object]  # does step number i


class Elsewhere(Protocol):
    """A contestant in another process: it is asked for a turn at a time, and times it by itself."""

    pid: int

    def turn(self, steps: Sequence[int]) -> float:
        """Does these steps; the seconds that they took together."""


Contestant = Step | Elsewhere


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentiles."""

    p10: float
    median: float
    p90: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(*(float(q) for q in np.percentile(values, (10, 50, 90))))

    @classmethod
    def of_ratios(cls, theirs: list[float], ours: list[float]) -> Spread:
        """Of what was measured in the same rounds."""
        return cls.of([a / b for a, b in zip(theirs, ours, strict=True)])


@dataclass(frozen=True)
class Budget:
    """How long to measure one row."""

    seconds: float = 0.8
    min_rounds: int = 3
    max_rounds: int = 25
    turn_seconds: float = 0.015  # a turn repeats steps until it is about this long


@dataclass(frozen=True)
class Turns:
    """The rounds that were kept."""

    seconds: dict[str, list[float]]  # per step, of every contestant, round by round
    limits: list[Limit]  # of the same rounds
    waiting: float  # fraction of the rounds' time that our threads waited for a core
    steps: int  # per turn
    dot_type: str  # what was multiplied when the limits were measured

    def ratios(self, name: str, to: str) -> Spread:
        """How many times as long as `to` the contestant `name` takes."""
        return Spread.of_ratios(self.seconds[name], self.seconds[to])


def interleave(contestants: Mapping[str, Contestant], meter: LimitMeter, budget: Budget, steps: int) -> Turns:
    """Runs rounds until the budget is used up.

    Parameters
    ----------
    contestants
        By name, in the order of the first round. The first one's speed decides how many steps a turn has.
    meter
        Takes its turn like the others.
    steps
        Number of different steps; they are repeated in order.
    """
    for contestant in contestants.values():  # also touches all memory and wakes up the threads
        _time(contestant, range(1))
    first = next(iter(contestants.values()))
    fastest = min(_time(first, range(1)) for _ in range(3))
    per_turn = max(1, min(steps, round(budget.turn_seconds / fastest)))

    rounds: list[_Round] = []
    begin = time.perf_counter()
    while len(rounds) < budget.max_rounds and (
        len(rounds) < budget.min_rounds or time.perf_counter() - begin < budget.seconds
    ):
        turn = [(len(rounds) * per_turn + i) % steps for i in range(per_turn)]
        names = list(contestants) if len(rounds) % 2 == 0 else list(contestants)[::-1]
        rounds.append(_round(contestants, names, meter, turn))
    kept = sorted(rounds, key=lambda r: r.waiting + r.waiting_elsewhere)[: (len(rounds) + 1) // 2]
    return Turns(
        seconds={name: [r.seconds[name] for r in kept] for name in contestants},
        limits=[r.limit for r in kept],
        waiting=float(np.mean([r.waiting for r in kept])),
        steps=per_turn,
        dot_type=meter.dot_type.name,
    )


@dataclass(frozen=True)
class _Round:
    seconds: dict[str, float]
    limit: Limit
    waiting: float
    waiting_elsewhere: float  # of contestants in other processes


def _round(
    contestants: Mapping[str, Contestant], names: list[str], meter: LimitMeter, turn: list[int]
) -> _Round:
    elsewhere = [contestant.pid for contestant in contestants.values() if not callable(contestant)]
    begin, waited, waited_elsewhere = time.perf_counter(), waited_s(), sum(map(waited_s, elsewhere))
    before = meter.measure()
    seconds = {name: _time(contestants[name], turn) / len(turn) for name in names}
    limit = before.best(meter.measure())
    threads_s = (time.perf_counter() - begin) * meter.threads
    return _Round(
        seconds,
        limit,
        waiting=(waited_s() - waited) / threads_s,
        waiting_elsewhere=(sum(map(waited_s, elsewhere)) - waited_elsewhere) / threads_s,
    )


def waited_s(pid: int | None = None) -> float:
    """How long all threads of a process (None: this one) have been ready to run, but without a core."""
    files = Path(f"/proc/{pid or 'self'}/task").glob("*/schedstat")  # "ns on a core, ns waiting, turns"
    return sum(int(file.read_text().split()[1]) for file in files) * 1e-9


def _time(contestant: Contestant, steps: Sequence[int]) -> float:
    if not callable(contestant):
        return contestant.turn(steps)
    begin = time.perf_counter()
    for step in steps:
        contestant(step)
    return time.perf_counter() - begin
