"""Layers of experts of known models, beside torch's own ways to run them and the machine's limits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import moerun
from bench.baselines import BASELINES, Baseline
from bench.limits import LimitMeter
from bench.report import LayerRow
from bench.rounds import Budget, Spread, Step, Turns, interleave
from bench.shapes import FLOATS, Shape
from bench.table import Column, Table, number, percent, plural, ratio
from bench.workload import Batch, batches, expert_weights
from moerun import LayerSpec, machine

OURS = "ours"
MAX_STEPS = 64  # different routings of a row; fewer when a step has many tokens
MAX_POOL_TOKENS = 2048


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    shape: Shape
    weight_format: str
    threads: int
    routing: str
    tokens: int
    isa: str = ""  # empty: what an engine chooses


def measure_models(
    shapes: Sequence[Shape],
    formats: Sequence[str],
    settings: Sequence[tuple[int, str]],
    tokens: Sequence[int],
    budget: Budget,
) -> Iterator[LayerRow]:
    """A table per model, format and setting (threads, routing); prints and yields the rows."""
    for shape, weight_format in itertools.product(shapes, formats):
        missing = _missing_memory(shape, weight_format)
        if missing:
            print(f"\n{shape.model}, {weight_format}: skipped, {missing}", flush=True)
            continue
        tensors = expert_weights(shape, weight_format)
        print()
        baselines = _agreeing(shape, weight_format, tensors)
        for threads, routing in settings:
            table = _table(shape, weight_format, threads, routing)
            for n in tokens:
                case = Case(shape, weight_format, threads, routing, n)
                row = measure_layer("layers", case, tensors, baselines, budget)
                _print(table, row)
                yield row


def measure_layer(
    table: str,
    case: Case,
    tensors: dict[str, torch.Tensor],
    baselines: Mapping[str, Baseline],
    budget: Budget,
) -> LayerRow:
    """One row: our layer, the baselines and the limits in turns."""
    shape, spec = case.shape, case.shape.in_format(case.weight_format)
    torch.set_num_threads(case.threads)
    steps = different_steps(case.tokens)
    pool = batches(shape, case.weight_format, case.tokens, case.routing, steps)
    out = torch.empty_like(pool[0].x)
    with moerun.Engine(cpu_threads=case.threads, isa=case.isa or None) as engine, torch.inference_mode():
        layer = engine.add_layer(spec, tensors)

        def ours(step: int) -> None:
            layer.forward(pool[step].x, pool[step].ids, pool[step].weights, out)

        contestants: dict[str, Step] = {OURS: ours}
        for name, baseline in baselines.items():
            contestants[name] = functools.partial(_baseline_step, baseline, spec, tensors, pool)
        meter = LimitMeter(case.threads, case.weight_format, case.isa)
        turns = interleave(contestants, meter, budget, steps)
        stats = engine.stats()
    step_bytes = stats["layers"][0]["weight_bytes"] / stats["layers"][0]["batches"]
    return layer_row(table, case, stats["isa"], turns, step_bytes)


def different_steps(tokens: int) -> int:
    """How many routings of their own a row's steps have."""
    return max(1, min(MAX_STEPS, MAX_POOL_TOKENS // tokens))


def _baseline_step(
    baseline: Baseline, spec: LayerSpec, tensors: dict[str, torch.Tensor], pool: list[Batch], step: int
) -> None:
    baseline(spec, tensors, pool[step])


def layer_row(table: str, case: Case, isa: str, turns: Turns, step_bytes: float) -> LayerRow:
    """What was measured, OURS and others. `step_bytes`: weights that a step reads, on average."""
    operations = case.shape.operations(case.tokens)
    least = [limit.seconds(step_bytes, operations) for limit in turns.limits]
    ours = turns.seconds[OURS]
    of_limit = [limit_s / ours_s for (limit_s, _), ours_s in zip(least, ours, strict=True)]
    seconds = Spread.of(ours).median
    ran = [name for name in turns.seconds if name != OURS]
    return LayerRow(
        table=table,
        model=case.shape.model,
        weight_format=case.weight_format,
        isa=isa,
        threads=case.threads,
        routing=case.routing,
        tokens=case.tokens,
        ours_ms=seconds * 1e3,
        baseline_ms={name: Spread.of(turns.seconds[name]).median * 1e3 for name in ran},
        ratio={name: turns.ratios(name, to=OURS) for name in ran},
        gb_per_s=step_bytes / seconds / 1e9,
        gflop_per_s=operations / seconds / 1e9,
        of_limit=Spread.of(of_limit),
        bound_by=_most_common(bound for _, bound in least),
        dot_type=turns.dot_type,
        read_limit_gb_per_s=Spread.of([limit.read_gb_per_s for limit in turns.limits]).median,
        dot_limit_gflop_per_s=Spread.of([limit.dot_gflop_per_s for limit in turns.limits]).median,
        active_experts=step_bytes / case.shape.weight_bytes(case.weight_format) * case.shape.num_experts,
        waiting=turns.waiting,
        rounds=len(ours),
        steps_per_round=turns.steps,
    )


def _table(shape: Shape, weight_format: str, threads: int, routing: str) -> Table:
    size = f"E {shape.num_experts}, k {shape.top_k}, H {shape.hidden_size}, I {shape.intermediate_size}"
    columns = [Column("tokens"), Column("experts")]
    columns += [Column(f"{name} ms") for name in BASELINES]
    columns += [Column("ours ms", 8)]
    columns += [Column(f"{name} / ours", 20) for name in BASELINES]
    columns += [
        Column("GB/s"),
        Column("GFLOP/s"),
        Column("of limit", 14),
        Column("by", 4, left=True),
        Column("wait"),
    ]
    title = f"{shape.model} ({size}), {weight_format}, {plural(threads, 'thread')}, {routing} routing"
    return Table(title, columns)


def _print(table: Table, row: LayerRow) -> None:
    times = [number(row.baseline_ms[name]) if name in row.baseline_ms else "n/a" for name in BASELINES]
    table.row(
        str(row.tokens),
        f"{row.active_experts:.1f}",
        *times,
        number(row.ours_ms),
        *(ratio(row.ratio.get(name)) for name in BASELINES),
        f"{row.gb_per_s:.1f}",
        f"{row.gflop_per_s:.0f}",
        percent(row.of_limit),
        row.bound_by,
        f"{row.waiting:.0%}",
    )


def _agreeing(shape: Shape, weight_format: str, tensors: dict[str, torch.Tensor]) -> dict[str, Baseline]:
    """The baselines that this torch can run; prints how far they are from ours, or why they cannot."""
    if weight_format not in FLOATS:
        print(f"{shape.model}, {weight_format}: torch has no such experts, so there is nothing beside ours")
        return {}
    batch = batches(shape, weight_format, 16, "uniform", 1)[0]
    able = {}
    with moerun.Engine() as engine, torch.inference_mode():
        ours = engine.add_layer(shape.spec, tensors).forward(batch.x, batch.ids, batch.weights).float()
        for name, baseline in BASELINES.items():
            try:
                theirs = baseline(shape.spec, tensors, batch).float()
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                answer = f"n/a with torch {torch.__version__}: {str(error).splitlines()[0]}"
            else:
                able[name] = baseline
                answer = f"outputs differ from ours by {float((ours - theirs).norm() / theirs.norm()):.2%}"
            print(f"{shape.model}, {weight_format}, {name}: {answer}", flush=True)
    return able


def _missing_memory(shape: Shape, weight_format: str) -> str:
    """What the weights lack, or nothing. Half as much again is for activations and the limits' buffers."""
    need = shape.weight_bytes(weight_format) * 3 // 2
    free = machine.memory().available_bytes
    return f"needs {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free" if need > free else ""


def _most_common(names: Iterable[str]) -> str:
    values, counts = np.unique(list(names), return_counts=True)
    return str(values[counts.argmax()])
