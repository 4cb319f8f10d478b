"""The expert kernels at the shapes of known models, beside torch's own, the card's memory and its products.

Checked before they are timed: a kernel whose result differs from fp32 torch is reported as wrong, without a
time. Decode is bound by memory and compared with the card's bandwidth, prefill with its own large product.

Every measurement rotates through steps with routings of their own, so that the weights of a step do not lie
in the second-level cache. "eager": launched one by one from Python. "graph": the steps as one CUDA graph,
which is the kernels' own time, as the engine's launches from C++ come close to.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.blobs import decode, expert_values, random_blobs
from bench.gpu.card import CardLimits, card_limits
from bench.gpu.clock import graph, seconds
from bench.gpu.expert_step import TOLERANCE, ExpertStep, error_of, expert_step, reference
from bench.gpu.rivals import RIVALS, WAITING
from bench.gpu.section import Deadline, first_line
from bench.shapes import SHAPES, Shape
from bench.table import Column, Table, number
from bench.workload import Batch, batches
from moerun.kernels.contract import KernelShape
from moerun.kernels.layout import Layer, layer_of
from moerun.kernels.tiles import RegimeTiles, regimes

FORMATS = ("bf16", "int8", "int4_g32", "fp8_b128", "mxfp4")
TOKENS = (1, 2, 4, 8, 16, 128, 512, 1024, 4096)
MEMORY_BOUND_TOKENS = 16  # up to here the share is that of the memory's bandwidth
_COMPILERS = 16  # processes; each has a CUDA context of half a GiB
_CACHES = 4  # what a rotation reads, in second-level caches
_MOST_STEPS = 32
_MOST_ROTATED_TOKENS = 2048


@dataclass(frozen=True)
class KernelRow:
    """One layer, format and number of tokens. Times are of one step; None: not measured, `error` says why."""

    model: str
    weight_format: str
    tokens: int
    regime: str
    relative_error: float | None
    graph_us: float | None
    eager_us: float | None
    gb_per_s: float | None  # weights of the active experts, by the graph's time
    tflop_per_s: float | None
    of_memory: float | None  # fraction
    of_matmul: float | None  # fraction
    error: str = ""


@dataclass(frozen=True)
class RivalRow:
    """torch with bf16 weights. No graph: it waits for the device. No time: `error` says why."""

    model: str
    rival: str
    tokens: int
    relative_error: float | None
    graph_us: float | None
    eager_us: float | None
    error: str = ""


def measure(deadline: Deadline) -> Iterator[tuple[str, Any]]:
    """The section "kernels": Qwen3-30B-A3B in all formats first, then the other models."""
    torch.backends.cuda.matmul.allow_tf32 = False
    properties = torch.cuda.get_device_properties(0)
    architecture = 10 * properties.major + properties.minor
    cases = list(itertools.product(SHAPES.values(), FORMATS))
    faults = _compile_all(cases, architecture)
    limits = card_limits()
    yield "limits", limits
    rivals: dict[tuple[str, int], list[RivalRow]] = {}
    for i, (shape, weight_format) in enumerate(cases):
        deadline.check(", ".join(f"{s.model} {f}" for s, f in cases[i:]))
        if faults[i]:
            print(f"\n{shape.model}, {weight_format}: {faults[i]}", flush=True)
            yield "kernels", _not_run(shape, weight_format, 0, faults[i])
            continue
        bench = LayerBench(shape, weight_format, architecture, properties, limits)
        table = _table(shape, weight_format)
        tensors = bench.tensors() if weight_format == "bf16" else {}
        for tokens in TOKENS:
            deadline.check(f"{shape.model} {weight_format} from {tokens} tokens on")
            key = (shape.model, tokens)
            if tensors:
                rivals[key] = [bench.rival_row(name, tensors, tokens) for name in RIVALS]
                yield from (("rivals", row) for row in rivals[key])
            row = bench.row(tokens)
            table.row(*_cells(row, rivals[key]))
            yield "kernels", row
        del bench, tensors
        torch.cuda.empty_cache()


class LayerBench:
    """One layer in one format on the device."""

    def __init__(
        self, shape: Shape, weight_format: str, architecture: int, properties: Any, limits: CardLimits
    ) -> None:
        self.shape, self.weight_format, self.limits = shape, weight_format, limits
        self.multiprocessors: int = properties.multi_processor_count
        self.l2_bytes: int = properties.L2_cache_size
        kernel_shape = _kernel_shape(shape, weight_format)
        self.layer = layer_of(kernel_shape, architecture)
        self.regimes = regimes(kernel_shape, architecture)
        self.blobs = random_blobs(self.layer, shape.num_experts, "cuda")

    def row(self, tokens: int) -> KernelRow:
        """Checks one step, then times a rotation."""
        made = self._batches(tokens)
        try:
            steps = [self._step(batch) for batch in made]
            error = self._error(steps[0], made[0])
            if error > TOLERANCE:
                why = f"WRONG: relative error {error:.2g}, at most {TOLERANCE:.2g} is rounding"
                return _not_run(self.shape, self.weight_format, tokens, why, steps[0].regime.name, error)
            eager_s, graph_s = _time(lambda: [step.run() for step in steps], len(steps))
        except Exception as failure:  # of Triton, CUDA or torch; without a common base
            torch.cuda.synchronize()  # raises, and ends the section, after an error that lasts
            return _not_run(self.shape, self.weight_format, tokens, _told(failure))
        return self._timed_row(tokens, steps, error, eager_s, graph_s)

    def _timed_row(
        self, tokens: int, steps: list[ExpertStep], error: float, eager_s: float, graph_s: float | None
    ) -> KernelRow:
        step_s = eager_s if graph_s is None else graph_s
        active = sum(step.active_experts for step in steps) / len(steps)
        weight_bytes = self.shape.weight_bytes(self.weight_format) / self.shape.num_experts * active
        gb_per_s = weight_bytes / step_s / 1e9
        tflop_per_s = self.shape.operations(tokens) / step_s / 1e12
        return KernelRow(
            model=self.shape.model,
            weight_format=self.weight_format,
            tokens=tokens,
            regime=steps[0].regime.name,
            relative_error=error,
            graph_us=None if graph_s is None else graph_s * 1e6,
            eager_us=eager_s * 1e6,
            gb_per_s=gb_per_s,
            tflop_per_s=tflop_per_s,
            of_memory=gb_per_s / self.limits.memory_gb_per_s,
            of_matmul=tflop_per_s / self.limits.matmul_tflop_per_s,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layer as torch's ways want it, in bf16: gate_up [E, 2I, H], down [E, H, I], and biases."""
        layer, blobs = self.layer, self.blobs
        pairs = ((decode(blob, layer.gate), decode(blob, layer.up)) for blob in blobs)
        tensors = {
            "gate_up": torch.stack([torch.cat(pair).to(torch.bfloat16) for pair in pairs]),
            "down": torch.stack([decode(blob, layer.down).to(torch.bfloat16) for blob in blobs]),
        }
        if self.shape.bias:
            values = [expert_values(layer, blob) for blob in blobs]
            gate_up = [torch.cat((e.gate_bias, e.up_bias)) for e in values]
            tensors["gate_up_bias"] = torch.stack(gate_up).to(torch.bfloat16)
            tensors["down_bias"] = torch.stack([e.down_bias for e in values]).to(torch.bfloat16)
        return tensors

    def rival_row(self, name: str, tensors: dict[str, torch.Tensor], tokens: int) -> RivalRow:
        """The same batches with one of torch's ways."""
        made = self._batches(tokens)
        spec, model = self.shape.spec, self.shape.model
        if name == "bmm gather" and tokens > MEMORY_BOUND_TOKENS:
            return RivalRow(model, name, tokens, None, None, None, "only for few tokens")
        on_device = [Batch(b.x.cuda(), b.ids.cuda(), b.weights.cuda()) for b in made]
        try:
            out = RIVALS[name](spec, tensors, on_device[0])
            error = error_of(out, reference(spec, self.layer, self.blobs, made[0]))
            eager_s, graph_s = _time(
                lambda: [RIVALS[name](spec, tensors, batch) for batch in on_device],
                len(on_device),
                graphed=name not in WAITING,
            )
        except Exception as failure:  # as above
            torch.cuda.synchronize()
            return RivalRow(model, name, tokens, None, None, None, _told(failure))
        graph_us = None if graph_s is None else graph_s * 1e6
        return RivalRow(model, name, tokens, error, graph_us, eager_s * 1e6)

    def _step(self, batch: Batch) -> ExpertStep:
        experts = self.shape.num_experts
        return expert_step(self.layer, self.regimes, self.blobs, batch, experts, self.multiprocessors)

    def _error(self, step: ExpertStep, batch: Batch) -> float:
        step.poison()
        return error_of(step.run(), reference(self.shape.spec, self.layer, self.blobs, batch))

    def _batches(self, tokens: int) -> list[Batch]:
        steps = rotation(self.shape, self.weight_format, tokens, self.l2_bytes)
        return batches(self.shape, "bf16", tokens, "uniform", steps)


def rotation(shape: Shape, weight_format: str, tokens: int, l2_bytes: int) -> int:
    """How many different steps follow each other, so that their weights exceed the second-level cache."""
    expert_bytes = shape.weight_bytes(weight_format) / shape.num_experts
    # of experts that a step can be expected to want, routing being uniform
    active = shape.num_experts * (1 - (1 - shape.top_k / shape.num_experts) ** tokens)
    wanted = -(-_CACHES * l2_bytes // int(expert_bytes * active))
    return max(1, min(wanted, _MOST_STEPS, _MOST_ROTATED_TOKENS // tokens))


def _time(work: Callable[[], object], steps: int, graphed: bool = True) -> tuple[float, float | None]:
    """Seconds per step, eager and in a graph."""
    eager_s = seconds(work) / steps
    return eager_s, seconds(graph(work)) / steps if graphed else None


def _compile_all(cases: Sequence[tuple[Shape, str]], architecture: int) -> list[str]:
    """Compiles every case's kernels on all cores, into Triton's cache; "" or what went wrong, by case."""
    spawn = multiprocessing.get_context("spawn")
    workers = min(_COMPILERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        pending: list[list[Future[None]]] = []
        for shape, weight_format in cases:
            kernel_shape = _kernel_shape(shape, weight_format)
            tiles = regimes(kernel_shape, architecture)
            pending.append([pool.submit(_compile, kernel_shape, architecture, regime) for regime in tiles])
        return [_fault(futures) for futures in pending]


def _fault(futures: Sequence[Future[None]]) -> str:
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    return _told(failures[0]) if failures else ""


def _compile(shape: KernelShape, architecture: int, regime: RegimeTiles) -> None:
    """In a process of its own: launches the regime's kernels on a tile without pairs, which does nothing."""
    from moerun.kernels.launch import Buffers, DeviceLists, launch_combine, launch_experts

    layer: Layer = layer_of(shape, architecture)
    device = "cuda"
    lists = DeviceLists(
        tiles=torch.zeros(1, 6, dtype=torch.int32, device=device),
        pair_token=torch.zeros(1, dtype=torch.int32, device=device),
        pair_weight=torch.zeros(1, device=device),
        token_rows=torch.zeros(1, shape.top_k, 2, dtype=torch.int32, device=device),
    )
    buffers = Buffers.empty(layer, 1, regime.gate_up.split, regime.down.split, device)
    x = torch.zeros(1, shape.hidden, dtype=torch.bfloat16, device=device)
    slab = torch.zeros(layer.blob_bytes, dtype=torch.uint8, device=device)
    launch_experts(layer, regime, x, slab, lists, buffers)
    launch_combine(layer, lists, buffers, torch.empty_like(x))
    torch.cuda.synchronize()


def _kernel_shape(shape: Shape, weight_format: str) -> KernelShape:
    return KernelShape(
        shape.hidden_size,
        shape.intermediate_size,
        shape.top_k,
        weight_format,
        "bf16",
        shape.activation,
        shape.bias,
    )


def _not_run(
    shape: Shape, weight_format: str, tokens: int, why: str, regime: str = "", error: float | None = None
) -> KernelRow:
    return KernelRow(
        shape.model, weight_format, tokens, regime, error, None, None, None, None, None, None, why
    )


def _told(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {first_line(failure)}"


def _table(shape: Shape, weight_format: str) -> Table:
    return Table(
        f"{shape.model}, {weight_format} (torch's: bf16), us a step",
        [Column("tokens"), Column("kernels", 9, left=True), Column("graph", 7), Column("eager", 7)]
        + [Column("GB/s"), Column("of memory"), Column("TFLOP/s"), Column("of matmul")]
        + [Column(f"{name} graph/eager", 22) for name in RIVALS],
    )


def _cells(row: KernelRow, rivals: Sequence[RivalRow]) -> list[str]:
    if row.error:
        print(f"  {row.tokens} tokens: {row.error}", flush=True)
    shares = [_percent(row.of_memory), _number(row.tflop_per_s), _percent(row.of_matmul)]
    return [
        str(row.tokens),
        row.regime,
        _number(row.graph_us),
        _number(row.eager_us),
        _number(row.gb_per_s),
        *shares,
        *(f"{_number(rival.graph_us)}/{_number(rival.eager_us)}" for rival in rivals),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
