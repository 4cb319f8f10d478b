"""What is measured of a layer's calls can be measured: here on the stand-in driver, with x in host memory."""

from __future__ import annotations

import expert_layers
import moerun
from bench.gpu.layer_calls import measure_calls
from fake_driver import FakeDriver


def test_times_come_in_order(gpu: FakeDriver) -> None:
    experts = expert_layers.random_experts(4, 24, 40)
    with moerun.Engine(device="cuda", cpu_threads=1, gpu_cache="1MiB", schedule="ondemand") as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, 2), expert_layers.tensors_of(experts))
        row = measure_calls(layer, "cpu", 3, lambda: None, calls=3)
        assert engine.stats()["layers"][0]["batches"] == 2 * (1 + 3)
    assert row.tokens == 3
    assert row.submit_us > 0
    assert 0 < row.returned_us <= row.finished_us
