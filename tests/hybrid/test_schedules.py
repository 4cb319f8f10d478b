"""Engines with a GPU give what the oracle says, whatever runs where."""

from __future__ import annotations

from typing import Any

import pytest

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver

SCHEDULES = ("cpu", "gpu", "ondemand", "static", "hybrimoe", "balanced")
EXPERTS, HIDDEN, INTER, TOP_K = 8, 48, 40, 3


def engine_with(**options: Any) -> moerun.Engine:
    return moerun.Engine(device="cuda", cpu_threads=1, **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cache", ["lru", "mrs"])
def test_every_schedule_equals_the_oracle(gpu: FakeDriver, schedule: str, cache: str) -> None:
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=1)
    slots = EXPERTS if schedule == "gpu" else 4
    blob = expert_layers.blob_bytes(experts)
    with engine_with(schedule=schedule, cache=cache, gpu_cache=slots * blob) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
        for seed, tokens in enumerate((1, 1, 1, 7, 1, 40, 0, 2)):
            batch = expert_layers.random_batch(tokens, HIDDEN, EXPERTS, TOP_K, seed=seed)
            oracle.layer(experts, *batch).check(layer.forward(*batch))
        stats = engine.stats()["gpu"]
    assert stats["slots"] == slots
    assert (gpu.counter("launches") > 0) == (schedule != "cpu")
    if schedule in ("gpu", "ondemand"):
        assert stats["gpu_steps"] == stats["steps"] == 7  # one batch is empty
