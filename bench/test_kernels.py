"""pytest-benchmark at the micro level: python -m pytest bench/test_kernels.py. Asserts nothing about time.

Unlike bench.run it compares nothing and measures no limits; it is for watching one kernel while working on
it, with pytest-benchmark's own saving and comparing of runs. `make test` does not collect it.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import moerun
from bench.kernels import FAST_ISAS
from bench.shapes import FLOATS, SHAPES, Shape
from bench.workload import batches, expert_weights
from moerun import machine

STEPS = 16


@pytest.fixture(scope="module")
def tensors(shape: Shape, weight_format: str) -> dict[str, torch.Tensor]:
    need, free = shape.weight_bytes(weight_format), machine.memory().available_bytes
    if need * 3 // 2 > free:
        pytest.skip(f"the weights take {need / 2**30:.1f} GiB, and {free / 2**30:.1f} are free")
    return expert_weights(shape, weight_format)


@pytest.mark.parametrize("tokens", [1, 16, 128])
@pytest.mark.parametrize("isa", FAST_ISAS)
@pytest.mark.parametrize("weight_format", FLOATS, scope="module")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES, scope="module")
def test_layer(
    benchmark: Any,
    tensors: dict[str, torch.Tensor],
    shape: Shape,
    weight_format: str,
    isa: str,
    tokens: int,
) -> None:
    pool = itertools.cycle(batches(shape, weight_format, tokens, "uniform", STEPS))
    out = torch.empty((tokens, shape.hidden_size), dtype=next(pool).x.dtype)
    with moerun.Engine(isa=isa) as engine:
        layer = engine.add_layer(shape.in_format(weight_format), tensors)

        def step() -> None:
            batch = next(pool)
            layer.forward(batch.x, batch.ids, batch.weights, out)

        benchmark.pedantic(step, rounds=10, iterations=1, warmup_rounds=2)
        stats = engine.stats()["layers"][0]
    assert torch.isfinite(out).all()
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(stats["weight_bytes"] / stats["batches"] / seconds / 1e9, 2)
    benchmark.extra_info["GFLOP/s"] = round(shape.operations(tokens) / seconds / 1e9, 1)
