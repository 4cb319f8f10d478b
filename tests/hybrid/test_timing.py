"""EngineConfig.time_every: how often the device's work is timed, and what is booked of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver

EXPERTS, HIDDEN, INTER, TOP_K, BATCHES = 6, 24, 40, 2, 12


@pytest.mark.parametrize("time_every", [1, 4, 100])
def test_only_some_batches_are_timed(gpu: FakeDriver, tmp_path: Path, time_every: int) -> None:
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=1)
    options = {"schedule": "ondemand", "gpu_cache": 3 * expert_layers.blob_bytes(experts)}
    with moerun.Engine(device="cuda", cpu_threads=1, time_every=time_every, **options) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
        asked = gpu.calls("cuEventElapsedTime")
        for seed in range(BATCHES):
            batch = expert_layers.random_batch(2, HIDDEN, EXPERTS, TOP_K, seed=seed)
            oracle.layer(experts, *batch).check(layer.forward(*batch))
            if seed == 0:
                once = gpu.calls("cuEventElapsedTime") - asked
        stats = engine.stats()["gpu"]
        engine.trace(tmp_path / "trace.json")
        if time_every == 100:
            assert gpu.calls("cuEventElapsedTime") - asked == once > 0
    assert stats["gpu_steps"] == stats["steps"] == BATCHES
    assert stats["gpu_seconds"] > 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    results = [event for event in events if event.get("name") == "result"]
    assert len(results) == -(-BATCHES // time_every)


@pytest.mark.parametrize("time_every", [0, -1, 1.5, True])
def test_what_is_no_number_of_batches(time_every: object) -> None:
    with pytest.raises(ValueError, match="time_every must be a positive integer"):
        moerun.EngineConfig(time_every=time_every)
