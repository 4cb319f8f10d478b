"""The plan may change from step to step; the result may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_counters import check_counters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver
from moerun import policy
from oracle import Experts

EXPERTS, HIDDEN, INTER, TOP_K, LAYERS = 6, 24, 264, 3, 2
SCHEDULES = ("cpu", "ondemand", "static", "hybrimoe", "balanced", "layerwise")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any, Any]:
    """A batch for a layer, a prediction for one, or a handle to be waited for later."""
    kind = draw(st.sampled_from(["forward", "forward", "submit", "hint"]))
    layer = draw(st.integers(0, LAYERS - 1))
    tokens = draw(st.integers(0, 6))
    ids = draw(arrays.arrays("int64", (tokens, TOP_K), elements=st.integers(-1, EXPERTS)))
    if kind == "hint":
        return kind, layer, ids
    weights = draw(arrays.arrays("float32", (tokens, TOP_K), elements=st.floats(-1, 1, width=16)))
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    return kind, layer, (x, torch.from_numpy(ids), torch.from_numpy(weights))


@pytest.fixture(scope="module")
def layers() -> list[Experts]:
    return [expert_layers.random_experts(EXPERTS, HIDDEN, INTER, bias=True, seed=n) for n in range(LAYERS)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedule=st.sampled_from(SCHEDULES),
    cache=st.sampled_from(["lru", "lfu", "recent", "mrs"]),
    slots=st.integers(TOP_K, 2 * EXPERTS),
    store=st.sampled_from(["auto", "staged"]),
    predictor=st.sampled_from(["gates", "history"]),
    cost=st.none() | st.builds(policy.CostModel, *[st.floats(0, 1e4)] * 6),
    usage=st.none() | st.lists(st.floats(0, 1), min_size=EXPERTS, max_size=EXPERTS),
    script=st.lists(steps(), max_size=10),
)
def test_any_residency_order_and_split_equal_the_oracle(
    gpu: FakeDriver,
    layers: list[Experts],
    schedule: str,
    cache: str,
    slots: int,
    store: str,
    predictor: str,
    cost: policy.CostModel | None,
    usage: list[float] | None,
    script: list,
) -> None:
    """Whatever experts are thought to cost, and whatever earlier runs are said to have used."""
    size = slots * expert_layers.blob_bytes(layers[0])
    options = {
        "schedule": schedule,
        "cache": cache,
        "store": store,
        "gpu_cache": size,
        "predictor": predictor,
    }
    pending = []
    with moerun.Engine(device="cuda", cpu_threads=1, **options) as engine:
        spec = expert_layers.spec_of(layers[0], TOP_K)
        added = [engine.add_layer(spec, expert_layers.tensors_of(experts)) for experts in layers]
        if cost is not None:
            engine._core.set_cost(added[0]._core, cost)
        if usage is not None:
            engine._core.warm_start(added[1]._core, usage)
            engine.start()
        for kind, number, what in script:
            if kind == "hint":
                added[number].hint(what)
                continue
            expected = oracle.layer(layers[number], *what)
            if kind == "submit":
                pending.append((expected, added[number].submit(*what)))
            else:
                expected.check(added[number].forward(*what))
        for expected, handle in pending:
            expected.check(handle.wait())
        check_counters(engine.stats(), added[0]._core.expert_bytes)
    assert gpu.violations() == []
