"""kt-kernel beside ours: one layer of experts of each model and format, the same bf16 weights and routings.

kt-kernel runs in a process of its own (kt_worker.py, under a Python that has it), which is stopped whenever
it is not its turn, since its threads spin while they wait. For the same reason only one thread is compared
with one where the machine has few cores: of its workers and its queue's thread each wants a core.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import moerun
from bench.layers import OURS, Case, different_steps, layer_row
from bench.limits import LimitMeter
from bench.report import LayerRow
from bench.rounds import Budget, interleave
from bench.shapes import Shape
from bench.table import Column, Table, number, percent, plural, ratio
from bench.workload import Batch, batches, expert_weights

THEIRS = "kt-kernel"
FORMATS = ("bf16", "int8", "int4_g32", "fp8_b128", "mxfp4")
WORKER = Path(__file__).with_name("kt_worker.py")
NOTE = (
    "kt-kernel's int8 has one scale per row, as ours; int4_g32 is its RAWINT4. Its process is stopped while "
    "ours runs: a thread of it spins always."
)


class KtKernel:
    """kt-kernel in a process of its own, with one layer; stopped whenever it has nothing to do."""

    def __init__(self, python: Path, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="moerun-bench-")
        self._log = (Path(self._folder.name) / "log").open("w+")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, WORKER, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=environment,
        )
        self.pid = self._process.pid
        self.version = self._answer()

    def __enter__(self) -> KtKernel:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def load(self, shape: Shape, weight_format: str, tensors: dict[str, torch.Tensor]) -> str:
        """Makes the layer; the name of kt-kernel's class for it."""
        sizes = {name: getattr(shape, name) for name in ("num_experts", "top_k", "hidden_size")}
        sizes["intermediate_size"] = shape.intermediate_size
        files = {name: self._write(name, tensors[name]) for name in ("gate_up", "down")}
        return self._ask("load", weight_format=weight_format, shape=sizes, **files)

    def batches(self, pool: list[Batch]) -> None:
        """The steps that turn() counts."""
        files = [
            {name: self._write(f"{name}-{i}", getattr(batch, name)) for name in ("x", "ids", "weights")}
            for i, batch in enumerate(pool)
        ]
        (tokens, hidden), top_k = pool[0].x.shape, pool[0].ids.shape[1]
        self._ask("batches", files=files, tokens=tokens, hidden=hidden, top_k=top_k)

    def turn(self, steps: Sequence[int]) -> float:
        """Seconds that these steps took together, by its own clock."""
        return self._ask("run", steps=list(steps))

    def output(self, step: int, like: torch.Tensor) -> torch.Tensor:
        """What this step returned when it last ran."""
        file = self._path("output")
        self._ask("output", step=step, file=file)
        return torch.from_file(file, size=like.numel(), dtype=torch.bfloat16).view(like.shape).clone()

    def _path(self, name: str) -> str:
        return str(Path(self._folder.name) / name)

    def _write(self, name: str, tensor: torch.Tensor) -> str:
        tensor.contiguous().view(torch.uint8).numpy().tofile(self._path(name))
        return self._path(name)

    def _ask(self, verb: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        os.kill(self.pid, signal.SIGCONT)
        self._process.stdin.write(json.dumps([verb, arguments]) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            end = "\n".join(self._log.read().splitlines()[-8:])
            raise RuntimeError(f"kt-kernel's process ended with status {self._process.returncode}:\n{end}")
        os.kill(self.pid, signal.SIGSTOP)
        return json.loads(line)


def measure_layers(
    python: Path,
    shapes: Sequence[Shape],
    formats: Sequence[str],
    threads: int,
    tokens: Sequence[int],
    budget: Budget,
) -> Iterator[LayerRow]:
    """A table per model and format; prints and yields the rows."""
    for shape in shapes:
        if shape.bias or shape.activation != "silu":
            print(f"\n{shape.model}: skipped, kt-kernel has no such activation or biases", flush=True)
            continue
        tensors = expert_weights(shape, "bf16")
        for weight_format in formats:
            with KtKernel(python, threads) as theirs, moerun.Engine(cpu_threads=threads) as engine:
                yield from _measure(shape, weight_format, threads, tokens, budget, tensors, theirs, engine)


def _measure(
    shape: Shape,
    weight_format: str,
    threads: int,
    tokens: Sequence[int],
    budget: Budget,
    tensors: dict[str, torch.Tensor],
    theirs: KtKernel,
    engine: moerun.Engine,
) -> Iterator[LayerRow]:
    kernel = theirs.load(shape, weight_format, tensors)
    layer = engine.add_layer(shape.in_format(weight_format), tensors)
    table = _table(shape, weight_format, threads, f"kt-kernel {theirs.version}: {kernel}")
    for n in tokens:
        pool = batches(shape, weight_format, n, "uniform", different_steps(n))
        theirs.batches(pool)
        out = torch.empty_like(pool[0].x)

        def ours(step: int, pool: list[Batch] = pool, out: torch.Tensor = out) -> None:
            layer.forward(pool[step].x, pool[step].ids, pool[step].weights, out)

        before = engine.stats()["layers"][0]
        contestants = {OURS: ours, THEIRS: theirs}
        turns = interleave(contestants, LimitMeter(threads, weight_format), budget, len(pool))
        stats = engine.stats()
        after = stats["layers"][0]
        step_bytes = (after["weight_bytes"] - before["weight_bytes"]) / (after["batches"] - before["batches"])
        case = Case(shape, weight_format, threads, "uniform", n)
        row = layer_row(f"kt-kernel {theirs.version}", case, stats["isa"], turns, step_bytes)

        ours(0)
        theirs.turn([0])
        y = theirs.output(0, like=out).float()
        _print(table, row, difference=float((out.float() - y).norm() / y.norm()))
        yield row


def _table(shape: Shape, weight_format: str, threads: int, kernel: str) -> Table:
    columns = [
        Column("tokens"),
        Column("experts"),
        Column("kt-kernel ms"),
        Column("ours ms", 8),
        Column("kt-kernel / ours", 20),
        Column("GB/s"),
        Column("GFLOP/s"),
        Column("of limit", 14),
        Column("by", 4, left=True),
        Column("wait"),
        Column("outputs differ"),
    ]
    title = f"{shape.model}, {weight_format}, {plural(threads, 'thread')}, uniform routing; {kernel}"
    return Table(title, columns)


def _print(table: Table, row: LayerRow, difference: float) -> None:
    table.row(
        str(row.tokens),
        f"{row.active_experts:.1f}",
        number(row.baseline_ms[THEIRS]),
        number(row.ours_ms),
        ratio(row.ratio[THEIRS]),
        f"{row.gb_per_s:.1f}",
        f"{row.gflop_per_s:.0f}",
        percent(row.of_limit),
        row.bound_by,
        f"{row.waiting:.0%}",
        f"{difference:.2%}",
    )
