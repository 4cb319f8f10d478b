"""The virtual clock: times by hand, what must hold for every system, and the profiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moerun.replay.models import MODELS, ModelShape
from moerun.replay.profile import Profile, load_profile, profile_names
from moerun.replay.simulator import Replay
from moerun.replay.synthetic import STYLES, generate
from moerun.replay.systems import SYSTEMS, System, find_system
from moerun.replay.trace import DECODE, Trace

# Round figures: an expert (3 MB) takes 300 us on the CPU, 30 us on the GPU and 600 us to copy.
MODEL = ModelShape("round", 2, 4, 1, 1000, 1000, 0, 0)
MACHINE = Profile("round", 8, 10, 1e9, 0, 100, 1e9, 0, 5, 0, 100)


def trace_of(*ids: int) -> Trace:
    """One token a step, the same expert in both layers."""
    tokens = len(ids)
    chosen = np.repeat(np.array(ids, np.uint16)[:, None, None], 2, axis=1)
    scores = np.zeros((tokens, 2, 4), np.float16)
    np.put_along_axis(scores, chosen.astype(int), 1, axis=-1)
    return Trace("round", chosen, scores, np.arange(tokens), np.full(tokens, DECODE))


def test_times_by_hand() -> None:
    cached = System("s", "static", "static")
    # One slot a layer, which holds expert 0: 2 layers of 100 us, then 30 us on the GPU or 300 us on the CPU.
    replay = Replay(trace_of(0, 1, 0), MODEL, MACHINE, cached, 0.25).run()
    assert replay.decode.time_us == pytest.approx(2 * (130 + 400 + 130))
    assert (replay.decode.hits, replay.decode.active) == (4, 6)
    assert replay.decode.idle_share("pcie") == 1

    ondemand = Replay(trace_of(1, 1), MODEL, MACHINE, System("s", "ondemand", "lru"), 0.25).run()
    assert ondemand.decode.time_us == pytest.approx(2 * (100 + 630) + 2 * (100 + 30))
    assert ondemand.decode.demand_copies == 2

    dividing = System("s", "balanced", "static", allow_fraction=True, partial_copy=True)
    divided = Replay(trace_of(1), MODEL, MACHINE, dividing, 0.25).run()
    share = 630 / (300 + 630)  # of the CPU: where 300 f = 630 (1 - f)
    assert divided.decode.time_us == pytest.approx(2 * (100 + 300 * share))


def test_promotion_copies_what_the_cpu_ran_while_pcie_is_idle() -> None:
    # Expert 1 runs on the CPU, again and again; without a copy on demand only promotion can make it resident.
    system = System("s", "static", "mrs", 0.5)
    assert Replay(trace_of(*[1] * 8), MODEL, MACHINE, system, 0.25).run().decode.hits == 0
    promoting = Replay(trace_of(*[1] * 8), MODEL, MACHINE, replace(system, promote=True), 0.25).run()
    assert promoting.decode.promoted == 2
    assert promoting.decode.hits >= 8


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_holds_for_every_system(name: str) -> None:
    model = replace(MODELS["DeepSeek-V2-Lite"], num_layers=6)
    trace = generate(model, STYLES[model.name], 16, 10, seed=4, warmup=5)
    machine = load_profile("a6000-xeon5220r")
    system = SYSTEMS[name]
    if system.schedule == "exact":
        system = replace(system, schedule="balanced")  # exact takes seconds in prefill
    replay, again = (Replay(trace, model, machine, system, 0.25, measure_from=5).run() for _ in range(2))
    assert replay.decode.report() == again.decode.report()
    assert (replay.prefill.steps, replay.decode.steps) == (1, 10)
    assert replay.decode.active == 10 * 6 * model.top_k
    for counters in (replay.prefill, replay.decode):
        assert 0 <= counters.hits <= counters.active
        assert counters.prefetch_used <= counters.prefetched
        assert counters.makespan_us >= counters.planned_us * (1 - 1e-9) - 1e-6 or counters.prefetched
        for resource in ("cpu", "gpu"):
            assert -1e-9 <= counters.idle_share(resource) <= 1
        assert all(c <= p for c, p in zip(counters.correct, counters.predictions, strict=True))


def test_everything_cached_needs_no_copies() -> None:
    model = replace(MODELS["Qwen2-57B-A14B"], num_layers=3)
    trace = generate(model, STYLES[model.name], 0, 5, seed=0)
    for name in ("HybriMoE", "ours", "kTransformers"):
        counters = Replay(trace, model, load_profile("h200"), SYSTEMS[name], 1.0).run().decode
        assert counters.hit_rate == 1
        assert counters.demand_copies == counters.prefetched == counters.promoted == 0


def test_ours_is_not_behind_hybrimoe_and_not_ahead_of_perfect_knowledge() -> None:
    model = replace(MODELS["Mixtral-8x7B"], num_layers=8)
    trace = generate(model, STYLES[model.name], 0, 30, seed=7, warmup=20)
    machine = load_profile("a6000-xeon5220r")
    step_us = {
        name: Replay(trace, model, machine, SYSTEMS[name], 0.5, measure_from=20).run().decode.step_us
        for name in ("HybriMoE", "ours", "perfect prefetch")
    }
    assert step_us["perfect prefetch"] < step_us["ours"] < step_us["HybriMoE"]


def test_a_trace_needs_its_own_model() -> None:
    trace = generate(replace(MODELS["Mixtral-8x7B"], num_layers=2), STYLES["Mixtral-8x7B"], 0, 2, seed=0)
    with pytest.raises(ValueError, match="8 experts, top-2"):
        Replay(trace, MODELS["Qwen3-30B-A3B"], load_profile("h200"), SYSTEMS["ours"], 0.5)
    with pytest.raises(ValueError, match="cache_ratio"):
        Replay(trace, MODELS["Mixtral-8x7B"], load_profile("h200"), SYSTEMS["ours"], 1.5)
    with pytest.raises(ValueError, match="known: llama"):
        find_system("vllm")


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_of_a_profile_has_a_source(name: str) -> None:
    cost = load_profile(name).cost(MODELS["Qwen3-30B-A3B"])
    assert min(cost.cpu_expert_us, cost.gpu_expert_us, cost.copy_us) > 0


def test_a_profile_without_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    figures = json.loads((Path(load_profile.__globals__["PROFILES"]) / "h200.json").read_text())
    del figures["figures"]["pcie_gbps"]["source"]
    path.write_text(json.dumps(figures))
    with pytest.raises(ValueError, match="pcie_gbps has no source"):
        load_profile(path)
    del figures["figures"]["pcie_gbps"]
    path.write_text(json.dumps(figures))
    with pytest.raises(ValueError, match=r"missing: \['pcie_gbps'\]"):
        load_profile(path)
    with pytest.raises(FileNotFoundError, match="a6000-xeon5220r"):
        load_profile("rtx9999")
