"""What the statistics of an engine with a GPU must satisfy after any run."""

from __future__ import annotations

from typing import Any

import pytest


def check_counters(stats: dict[str, Any], expert_bytes: int) -> None:
    """Every active expert was found or missed; what came into the cache is there or was evicted."""
    gpu = stats["gpu"]
    active = sum(layer["weight_bytes"] for layer in stats["layers"]) // expert_bytes
    assert gpu["hits"] + gpu["misses"] == active
    assert gpu["gpu_steps"] <= gpu["steps"]
    assert gpu["copies"] <= gpu["misses"]
    arrived = gpu["copies"] + gpu["prefetches_completed"] + gpu["prefetches_promoted"]
    assert arrived - gpu["evictions"] == gpu["resident"] <= gpu["slots"]
    ended = sum(gpu[f"prefetches_{end}"] for end in ("completed", "promoted", "cancelled"))
    assert 0 <= gpu["prefetches"] - ended <= gpu["slots"]
    assert gpu["prefetches_used"] + gpu["prefetches_wasted"] <= gpu["prefetches"]
    for who in ("cpu", "gpu", "copy"):  # busy or idle, never both
        busy, idle = gpu[f"{who}_seconds"], gpu[f"{who}_idle_seconds"]
        assert busy >= 0
        assert idle >= 0
        assert busy + idle == pytest.approx(gpu["observed_seconds"], rel=1e-6, abs=1e-9)
    assert gpu["planned_seconds"] >= 0
