"""Kernels of every instruction set and weight format; and what a call costs in Python, beyond them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

import moerun
from bench.layers import Case, measure_layer
from bench.report import LayerRow
from bench.rounds import Budget, Spread
from bench.shapes import EXAMPLE, Shape
from bench.table import Column, Table, number, percent, plural
from bench.workload import batches, expert_weights
from moerun import _core

TINY = Shape("tiny", 4, 2, 64, 32)
# Rows that are meant to be fast: "ref" is meant to be read, "amx_emulated" to be tested.
FAST_ISAS = tuple(name for name in _core.available_isas() if name not in ("ref", "amx_emulated"))
_CALLS = 200  # per turn
_TURNS = 15


def measure_kernels(
    formats: Sequence[str], threads: int, tokens: Sequence[int], budget: Budget
) -> Iterator[LayerRow]:
    """One shape in every row of the kernel table that is meant to be fast."""
    table = Table(
        f"kernels: {EXAMPLE.model} (H {EXAMPLE.hidden_size}, I {EXAMPLE.intermediate_size}), "
        f"{plural(threads, 'thread')}, each beside the limits of its own instruction set",
        [
            Column("kernels", 12, left=True),
            Column("format", left=True),
            Column("tokens"),
            Column("ours ms", 8),
            Column("GB/s"),
            Column("GFLOP/s"),
            Column("read limit"),
            Column("dot limit"),
            Column("of limit", 14),
            Column("by", 4, left=True),
            Column("wait"),
        ],
    )
    for weight_format in formats:
        tensors = expert_weights(EXAMPLE, weight_format)
        for isa in FAST_ISAS:
            for n in tokens:
                case = Case(EXAMPLE, weight_format, threads, "uniform", n, isa)
                row = measure_layer("kernels", case, tensors, {}, budget)
                table.row(
                    row.isa,
                    row.weight_format,
                    str(row.tokens),
                    number(row.ours_ms),
                    f"{row.gb_per_s:.1f}",
                    f"{row.gflop_per_s:.0f}",
                    f"{row.read_limit_gb_per_s:.1f}",
                    f"{row.dot_limit_gflop_per_s:.0f}",
                    percent(row.of_limit),
                    row.bound_by,
                    f"{row.waiting:.0%}",
                )
                yield row


@dataclass(frozen=True)
class OverheadRow:
    """One way of calling a layer that has next to nothing to compute."""

    call: str
    threads: int
    total_us: Spread
    kernels_us: Spread  # between the first and the last thread's work, by the engine's own clock
    beyond_us: Spread


def measure_overhead(threads: Sequence[int]) -> Iterator[OverheadRow]:
    """What a call costs in Python and in the engine, beyond the kernels (design target: at most 20 us)."""
    table = Table(
        f"a call: {TINY.num_experts} experts, H {TINY.hidden_size}, I {TINY.intermediate_size}, 1 token",
        [
            Column("call", 14, left=True),
            Column("threads"),
            Column("total us"),
            Column("kernels us"),
            Column("beyond the kernels us", 24),
        ],
    )
    tensors = expert_weights(TINY, "bf16")
    batch = batches(TINY, "bf16", 1, "uniform", 1)[0]
    arguments = (batch.x, batch.ids, batch.weights)
    out = torch.empty_like(batch.x)
    for count in threads:
        torch.set_num_threads(count)
        with moerun.Engine(cpu_threads=count) as engine:
            layer = engine.add_layer(TINY.spec, tensors)
            ways = {
                "forward": lambda layer=layer: layer.forward(*arguments),
                "forward(out=)": lambda layer=layer: layer.forward(*arguments, out),
                "submit, wait": lambda layer=layer: layer.submit(*arguments).wait(),
            }
            for name, call in ways.items():
                row = _measure_call(name, engine, call)
                beyond = row.beyond_us
                spread = f"{number(beyond.median)} [{number(beyond.p10)}..{number(beyond.p90)}]"
                table.row(
                    name, str(count), number(row.total_us.median), number(row.kernels_us.median), spread
                )
                yield row


def _measure_call(name: str, engine: moerun.Engine, call: Callable[[], object]) -> OverheadRow:
    total, kernels = [], []
    call()
    for _ in range(_TURNS):
        before = engine.stats()["layers"][0]["seconds"]
        begin = time.perf_counter()
        for _ in range(_CALLS):
            call()
        total.append((time.perf_counter() - begin) / _CALLS * 1e6)
        kernels.append((engine.stats()["layers"][0]["seconds"] - before) / _CALLS * 1e6)
    beyond = [t - k for t, k in zip(total, kernels, strict=True)]
    return OverheadRow(
        name, engine.stats()["cpu_threads"], Spread.of(total), Spread.of(kernels), Spread.of(beyond)
    )
