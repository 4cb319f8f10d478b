"""Thousands of random steps: engines at once, threads that submit at once, routing that drifts, predictions
that are right or wrong, and operations that start late. Equal to the oracle, the counters add up, and
nothing is left on the device. MOERUN_SOAK_STEPS makes it longer."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gpu_counters import check_counters

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver
from oracle import Expected, Experts

EXPERTS, HIDDEN, INTER, TOP_K, LAYERS = 8, 24, 136, 2, 3
STEPS = int(os.environ.get("MOERUN_SOAK_STEPS", "600"))  # of one thread; there are four
BATCHES = 24  # prepared for each layer, so that the oracle is asked once for each


@pytest.fixture(scope="module")
def layers() -> list[Experts]:
    return [expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=n) for n in range(LAYERS)]


@pytest.fixture(scope="module")
def batches(layers: list[Experts]) -> list[list[tuple[expert_layers.Routed, Expected]]]:
    """Per layer, batches of neighbouring experts, from one token to many."""

    def prepared(experts: Experts, n: int) -> tuple[expert_layers.Routed, Expected]:
        batch = expert_layers.random_batch(1 if n % 3 else 1 + n, HIDDEN, EXPERTS // 2, TOP_K, seed=n)
        batch = expert_layers.Routed(batch.x, (batch.ids + n // 3) % EXPERTS, batch.weights)
        return batch, oracle.layer(experts, *batch)

    return [[prepared(experts, n) for n in range(BATCHES)] for experts in layers]


@pytest.mark.parametrize("schedule", ["ondemand", "balanced"])
def test_soak(gpu: FakeDriver, layers, batches, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKECUDA_SHAKE", "7:50")
    gpu.reset()
    blob = expert_layers.blob_bytes(layers[0])
    engines = [
        moerun.Engine(device="cuda", cpu_threads=1, schedule=schedule, cache=cache, gpu_cache=slots * blob)
        for cache, slots in (("mrs", 7), ("lru", 4))
    ]
    spec = expert_layers.spec_of(layers[0], TOP_K)
    added = [[engine.add_layer(spec, expert_layers.tensors_of(e)) for e in layers] for engine in engines]

    def work(seed: int) -> int:
        rng = random.Random(seed)
        torch.set_num_threads(1)
        mine, pending = added[seed % 2], []
        drift = 0
        for step in range(STEPS):
            drift += rng.random() < 0.1
            number = step % LAYERS
            batch, expected = batches[number][(drift + rng.randrange(3)) % BATCHES]
            if rng.random() < 0.5:  # a prediction for the next layer, right or wrong
                later = (number + 1) % LAYERS
                mine[later].hint(batches[later][(drift + rng.randrange(6)) % BATCHES][0].ids)
            if rng.random() < 0.3:
                pending.append((expected, mine[number].submit(*batch)))
            else:
                expected.check(mine[number].forward(*batch))
            while len(pending) > 8:
                waited, handle = pending.pop(rng.randrange(len(pending)))
                waited.check(handle.wait())
        for waited, handle in pending:
            waited.check(handle.wait())
        return STEPS

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 4 * STEPS
    for engine in engines:
        stats = engine.stats()
        check_counters(stats, added[0][0]._core.expert_bytes)
        assert stats["gpu"]["evictions"] > 0
        assert stats["gpu"]["prefetches"] > 0
        assert stats["gpu"]["steps"] == sum(layer["batches"] for layer in stats["layers"])
        engine.close()
