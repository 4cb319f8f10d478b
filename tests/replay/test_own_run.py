"""What bench/model_check.py is made of: the replay of an engine's run has its costs, routing and cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import expert_layers
import moerun
from fake_driver import FakeDriver
from moerun.calibration import Points
from moerun.replay.models import ModelShape
from moerun.replay.own_run import ENGINE, measured_profile, trace_of
from moerun.replay.simulator import Replay
from moerun.replay.trace import DECODE, PREFILL

EXPERTS, TOP_K, HIDDEN, INTER = 12, 3, 24, 40
SHAPE = ModelShape("own run", 2, EXPERTS, TOP_K, HIDDEN, INTER, 0, 0)
FIRST, EXPERT, TOKEN, GPU_EXPERT, GPU_TOKEN, FIXED, BYTE = 10.0, 20.0, 3.0, 5.0, 0.5, 4.0, 0.01
SIZE = 11776


def points(byte_us: float = BYTE) -> Points:
    grid = [(n, n * t) for n in (1, 2, 4) for t in (1, 8)]
    return Points(
        cpu=[(n, t, 1.0, FIRST + n * EXPERT + t * TOKEN) for n, t in grid],
        gpu=[(n, t, 1.0, n * GPU_EXPERT + t * GPU_TOKEN) for n, t in grid],
        copies=[(SIZE // part, FIXED + SIZE // part * byte_us) for part in (1, 2, 4)],
        expert_bytes=SIZE,
    )


def batches(layers: int, sizes: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    liking = rng.normal(0, 1, (layers, EXPERTS))
    return [
        np.argsort(-(liking + rng.gumbel(0, 1, (n, layers, EXPERTS))), axis=2)[:, :, :TOP_K] for n in sizes
    ]


def test_a_profile_has_the_costs_that_were_timed() -> None:
    profile = measured_profile(points(), SHAPE, layer_us=7.0)
    cost = profile.cost(SHAPE)
    assert cost.cpu_first_us == pytest.approx(FIRST)
    assert cost.copy_us == pytest.approx(FIXED + SIZE * BYTE)
    assert profile.attention_us(SHAPE, 5) == 7
    assert profile.shared_gpu_us(SHAPE, 5) == 0
    assert profile.pcie_gbps == pytest.approx(1 / BYTE / 1e3)
    assert profile.expert_bytes(SHAPE) == pytest.approx(SIZE)
    assert profile.cpu_gbps == pytest.approx(SIZE / EXPERT / 1e3)
    alone = points()
    with pytest.raises(ValueError, match="only a machine with a GPU"):
        measured_profile(Points(alone.cpu, [], [], SIZE), SHAPE, 0)


def test_a_trace_is_what_went_through_the_engine() -> None:
    steps = batches(2, [4, 1, 1, 3])
    trace = trace_of(steps, EXPERTS)
    assert [len(step) for step in trace.steps()] == [4, 1, 1, 3]
    assert trace.phase.tolist() == [PREFILL] * 4 + [DECODE] * 2 + [PREFILL] * 3
    assert np.array_equal(trace.ids[4:5], steps[1])
    assert trace.scores.sum(axis=2) == pytest.approx(1, abs=1e-2)


def test_without_copies_a_step_takes_what_its_experts_take_on_the_cpu() -> None:
    steps = batches(2, [1] * 6)
    profile = measured_profile(points(byte_us=1e3), SHAPE, layer_us=7.0)
    replay = Replay(trace_of(steps, EXPERTS), SHAPE, profile, ENGINE, 0.5).run()
    layer_us = 7 + FIRST + TOP_K * (EXPERT + TOKEN)
    assert replay.decode.step_us == pytest.approx(2 * layer_us)
    assert replay.decode.demand_copies == replay.decode.hits == 0


@pytest.mark.parametrize("slots", [6, 8, 12])
def test_the_replay_finds_what_the_engine_finds(gpu: FakeDriver, slots: int) -> None:
    """Hits and copies of a run: the same values of the same experts, so the same evictions but for ties."""
    steps = batches(1, [1, 1, 2, 1, 1] * 20, seed=slots)
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=1)
    options = {"schedule": "ondemand", "cache": "mrs", "prefetch": "none"}
    size = slots * expert_layers.blob_bytes(experts)
    hits, copies = [0], [0]
    with moerun.Engine(device="cuda", cpu_threads=1, gpu_cache=size, **options) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))
        for ids in steps:
            layer.forward(
                torch.zeros(len(ids), HIDDEN), torch.from_numpy(ids[:, 0].copy()), torch.ones(len(ids), TOP_K)
            )
            hits.append(engine.stats()["gpu"]["hits"])
            copies.append(engine.stats()["gpu"]["copies"])
    shape = ModelShape("own run", 1, EXPERTS, TOP_K, HIDDEN, INTER, 0, 0)
    profile = measured_profile(points(), shape, layer_us=7.0)
    for seen in (len(steps) // 2, len(steps)):
        system = ENGINE.but("engine on demand", schedule="ondemand")
        replay = Replay(trace_of(steps[:seen], EXPERTS), shape, profile, system, slots / EXPERTS).run()
        found = replay.prefill.hits + replay.decode.hits
        active = replay.prefill.active + replay.decode.active
        copied = replay.prefill.demand_copies + replay.decode.demand_copies
        assert active == hits[seen] + copies[seen]
        assert abs(found - hits[seen]) <= 0.02 * active
        assert abs(copied - copies[seen]) <= 0.02 * active
