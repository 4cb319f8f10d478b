"""One layer of experts through the engine, all of them cached: what a call costs its caller, and until when.

x on the GPU is read there and ordered with the stream; x in host memory goes to the GPU and comes back.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import moerun
from bench.gpu.section import Deadline
from bench.shapes import SHAPES
from bench.table import Column, Table, number

SHAPE = "qwen3-30b"
TOKENS = (1, 4, 16, 512)
CALLS = 50


@dataclass(frozen=True)
class LayerCallRow:
    """Medians of CALLS calls, in microseconds."""

    x: str  # where it lies: "cuda" or "cpu"
    tokens: int
    submit_us: float  # until submit() returns
    returned_us: float  # until forward() returns
    finished_us: float  # until the result is there


def measure(deadline: Deadline) -> Iterator[tuple[str, LayerCallRow]]:
    """The section "calls"."""
    shape = SHAPES[SHAPE]
    spec = moerun.LayerSpec(shape.num_experts, shape.hidden_size, shape.intermediate_size, shape.top_k)
    generator = torch.Generator().manual_seed(0)
    size = (spec.num_experts, 2 * spec.intermediate_size, spec.hidden_size)
    gate_up = torch.randn(size, generator=generator, dtype=torch.bfloat16) * spec.hidden_size**-0.5
    down = gate_up[:, : spec.intermediate_size].transpose(1, 2).contiguous()
    table = Table(
        f"a call of one layer at {SHAPE}'s shape in bf16, all experts cached; us",
        [
            Column("x", 4, left=True),
            Column("tokens", 6),
            Column("submit", 8),
            Column("forward returns", 8),
            Column("result is there"),
        ],
    )
    with moerun.Engine(device="cuda", schedule="gpu") as engine:
        layer = engine.add_layer(spec, {"gate_up": gate_up, "down": down})
        for place in ("cuda", "cpu"):
            for tokens in TOKENS:
                deadline.check(f"x on {place}, {tokens} tokens")
                row = measure_calls(layer, place, tokens, torch.cuda.synchronize)
                table.row(
                    place,
                    str(tokens),
                    *(number(us) for us in (row.submit_us, row.returned_us, row.finished_us)),
                )
                yield "calls", row


def measure_calls(
    layer: moerun.Layer, place: str, tokens: int, synchronize: Callable[[], object], calls: int = CALLS
) -> LayerCallRow:
    """Times calls with x on `place`, a torch device; `synchronize` waits for that."""
    spec = layer.spec
    x = torch.randn(tokens, spec.hidden_size, dtype=torch.bfloat16).to(place)
    ids = torch.stack([torch.randperm(spec.num_experts)[: spec.top_k] for _ in range(tokens)]).to(place)
    weights = torch.full(ids.shape, 1 / spec.top_k, device=place)

    def timed() -> tuple[float, float, float]:
        synchronize()
        begin = time.perf_counter()
        handle = layer.submit(x, ids, weights)
        submitted = time.perf_counter()
        handle.wait()
        synchronize()
        again = time.perf_counter()
        layer.forward(x, ids, weights)
        returned = time.perf_counter()
        synchronize()
        return submitted - begin, returned - again, time.perf_counter() - again

    timed()  # buffers grow
    submit, returned, finished = zip(*(timed() for _ in range(calls)), strict=True)
    times = (1e6 * statistics.median(seconds) for seconds in (submit, returned, finished))
    return LayerCallRow(place, tokens, *times)
