"""Engines with a real GPU give what the oracle says: the driver, Triton's machine code and the copies as they
are. The stand-in driver's tests go further; these show that what it stands in for behaves alike."""

from __future__ import annotations

import pytest
import torch

import expert_layers
import moerun
import oracle
from oracle import Narrow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

SCHEDULES = ("cpu", "gpu", "ondemand", "static", "hybrimoe", "balanced")
EXPERTS, HIDDEN, INTER, TOP_K = 8, 256, 192, 3
TOKENS = (1, 1, 1, 7, 1, 40, 0, 2, 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("store", ["pinned", "staged"])
def test_every_schedule_equals_the_oracle(schedule: str, dtype: torch.dtype, store: str) -> None:
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, dtype, seed=1)
    cache = (EXPERTS if schedule == "gpu" else 4) * expert_layers.blob_bytes(experts)
    options = {"schedule": schedule, "gpu_cache": cache, "store": store, "cpu_threads": 2}
    with moerun.Engine(device="cuda", **options) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
        for seed, tokens in enumerate(TOKENS):
            batch = expert_layers.random_batch(tokens, HIDDEN, EXPERTS, TOP_K, dtype, seed)
            oracle.layer(experts, *batch, narrow=Narrow(activations=dtype)).check(layer.forward(*batch))
        stats = engine.stats()["gpu"]
    if schedule in ("gpu", "ondemand"):
        assert stats["gpu_steps"] == stats["steps"] == sum(tokens > 0 for tokens in TOKENS)


@pytest.mark.parametrize("schedule", ["ondemand", "balanced"])
def test_batches_on_the_device(schedule: str) -> None:
    """The caller's tensors lie on the GPU that the engine uses, and come out of unfinished work there."""
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=2)
    cache = 4 * expert_layers.blob_bytes(experts)
    with moerun.Engine(device="cuda", schedule=schedule, gpu_cache=cache, cpu_threads=2) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
        for seed in range(4):
            x, ids, weights = expert_layers.random_batch(5, HIDDEN, EXPERTS, TOP_K, seed=seed)
            busy = torch.randn(2048, 2048, device="cuda")
            late = x.cuda() + 0 * (busy @ busy).sum().nan_to_num()
            out = layer.forward(late, ids.cuda(), weights.cuda())
            assert out.is_cuda
            oracle.layer(experts, x, ids, weights).check(out.cpu())


@pytest.mark.parametrize("schedule", ["cpu", "ondemand", "balanced"])
def test_streams_order_the_work(schedule: str) -> None:
    """x is late in one stream, which is named or current; what follows there sees the result."""
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, torch.bfloat16, seed=2)
    cache = 4 * expert_layers.blob_bytes(experts)
    with moerun.Engine(device="cuda", schedule=schedule, gpu_cache=cache, cpu_threads=2) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
        side = torch.cuda.Stream()
        for seed in range(6):
            batch = expert_layers.random_batch(5, HIDDEN, EXPERTS, TOP_K, torch.bfloat16, seed=seed)
            expected = oracle.layer(experts, *batch, narrow=Narrow(activations=torch.bfloat16))
            x, ids, weights = (array.cuda() for array in batch)
            torch.cuda.synchronize()
            with torch.cuda.stream(side):
                late = torch.zeros_like(x)
                torch.cuda._sleep(10_000_000)
                late += x
                if seed % 2:
                    out = layer.forward(late, ids, weights)
            if seed % 2 == 0:
                out = layer.submit(late, ids, weights, stream=side).wait()
            with torch.cuda.stream(side):
                copy = out.clone()
                late.zero_()
            side.synchronize()
            expected.check(copy.cpu())


def test_one_engine_after_another() -> None:
    """Each gives everything back: the second finds as much room as the first did."""
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=3)
    batch = expert_layers.random_batch(3, HIDDEN, EXPERTS, TOP_K)
    free = []
    for _ in range(3):
        with moerun.Engine(device="cuda", schedule="ondemand", gpu_cache="1GiB", cpu_threads=1) as engine:
            layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
            oracle.layer(experts, *batch).check(layer.forward(*batch))
        free.append(torch.cuda.mem_get_info()[0])
    assert free[2] > free[0] - (512 << 20)  # modules and the like may stay loaded, caches may not
