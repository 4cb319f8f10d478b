"""Calibration: what is timed, that it is timed once, what happens to damage, and that results stay the same.

Nothing here looks at how long something took, only at which points there are and where they go.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver
from moerun.calibration import Points, cache, calibrate
from moerun.calibration.made_up import made_up_layer

EXPERTS, HIDDEN, INTER, TOP_K = 8, 24, 40, 3
BLOB = 15104  # bytes of one such expert in fp32
GOOD = Points(
    cpu=[(n, n * t, 1.0, 10.0 + n * 20 + n * t * 3) for n in (1, 2, 4) for t in (1, 8)],
    gpu=[(n, n * t, 1.0, n * 5 + n * t * 0.5) for n in (1, 4) for t in (1, 8)],
    copies=[(BLOB // part, 4 + BLOB / part * 0.01) for part in (1, 2, 4)],
    expert_bytes=BLOB,
)


@pytest.fixture
def experts() -> oracle.Experts:
    return expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=3)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[moerun.engine.Layer]]:
    """The layers that are timed; all of them are said to take GOOD."""
    layers: list[moerun.engine.Layer] = []

    def time(layer: moerun.engine.Layer) -> Points:
        layers.append(layer)
        return GOOD

    monkeypatch.setattr("moerun.calibration.calibrator._time", time)
    yield layers
    layers.clear()


def add(engine: moerun.Engine, experts: oracle.Experts) -> moerun.engine.Layer:
    return engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))


def engine_with(**options: Any) -> moerun.Engine:
    return moerun.Engine(**{"device": "cuda", "cpu_threads": 1, "gpu_cache": 5 * BLOB, **options})


def costs(layer: moerun.engine.Layer) -> list[float]:
    cost = layer.cost
    assert cost is not None
    return [cost.cpu_first_us, cost.cpu_expert_us, cost.cpu_token_us, cost.gpu_expert_us, cost.copy_us]


def check_points(points: Points, on_gpu: bool) -> None:
    for compute in (points.cpu, points.gpu):
        assert all(0 < n <= tokens and 0 < s <= 1 and us > 0 for n, tokens, s, us in compute)
    assert {n for n, *_ in points.cpu} >= {1, 2, 4}  # else "first" cannot be told from "expert"
    assert bool(points.gpu) == bool(points.copies) == on_gpu
    assert (
        sorted(size for size, _ in points.copies)
        == sorted(points.expert_bytes >> n for n in (0, 1, 2))[3 * (not on_gpu) :]
    )
    assert Points.from_dict(json.loads(json.dumps(points.as_dict()))) == points


@pytest.mark.parametrize("store", ["pinned", "staged"])
def test_what_is_timed_with_a_gpu(gpu: FakeDriver, experts: oracle.Experts, store: str) -> None:
    with engine_with(store=store) as engine:
        layer = add(engine, experts)
        check_points(calibrate(layer), on_gpu=True)
        stats = engine.stats()
        batch = expert_layers.random_batch(3, HIDDEN, EXPERTS, TOP_K)
        oracle.layer(experts, *batch).check(layer.forward(*batch))
    counted = {key: value for key, value in stats["gpu"].items() if key != "workspace_bytes"}
    assert not any(np.any(value) for value in counted.values()), (
        "calibrating has left traces in the statistics"
    )
    assert stats["layers"][0]["batches"] == stats["layers"][0]["expert_tokens"].sum() == 0


def test_what_is_timed_without_a_gpu(experts: oracle.Experts) -> None:
    with moerun.Engine(device="cpu", cpu_threads=2) as engine:
        layer = add(engine, experts)
        assert layer.cost is None
        check_points(calibrate(layer), on_gpu=False)


@pytest.mark.parametrize("gpu_cache", [0, BLOB])
def test_a_cache_of_no_or_of_one_expert(gpu: FakeDriver, experts: oracle.Experts, gpu_cache: int) -> None:
    with engine_with(gpu_cache=gpu_cache) as engine:
        points = calibrate(add(engine, experts))
    assert {n for n, *_ in points.gpu} == ({1} if gpu_cache else set())


def test_too_little_memory_is_met_with_fewer_slots(gpu: FakeDriver, experts: oracle.Experts) -> None:
    with engine_with() as engine:
        layer = add(engine, experts)
        gpu.fail("cuMemAlloc_v2", 1, 2)  # the cache of five experts
        assert {n for n, *_ in calibrate(layer).gpu} == {1, 2}


def test_a_layer_is_timed_once_a_kind_and_machine(
    gpu: FakeDriver, experts: oracle.Experts, timed: list, cache_folder: Path
) -> None:
    expected = GOOD.fit().cost
    for _ in range(2):
        with engine_with(calibrate="once") as engine:
            layers = [add(engine, experts), add(engine, experts)]
            for layer in layers:
                assert costs(layer) == pytest.approx(
                    [getattr(expected, f"{n}_us") for n in ("cpu_first", "cpu_expert", "cpu_token")]
                    + [expected.gpu_expert_us, expected.copy_us]
                )
    assert len(timed) == 1
    assert len(list(cache_folder.iterdir())) == 1
    with engine_with(calibrate="once", store="staged") as engine:
        add(engine, experts)
    assert len(timed) == 2, "copies from memory that is not page-locked cost something else"


def test_only_what_is_cached_or_nothing(
    gpu: FakeDriver, experts: oracle.Experts, timed: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for mode in ("cached", "once", "cached", "off"):
        with engine_with(calibrate=mode) as engine:
            found.append(costs(add(engine, experts)))
    assert len(timed) == 1
    guess, once, cached, off = found
    assert guess == off != once == cached
    monkeypatch.setenv("MOERUN_CALIBRATE", "cached")
    with engine_with() as engine:
        assert costs(add(engine, experts)) == cached
    monkeypatch.setenv("MOERUN_CALIBRATE", "always")
    with pytest.raises(ValueError, match="MOERUN_CALIBRATE is 'always'; known: once, cached, off"):
        engine_with()
    with pytest.raises(ValueError, match="calibrate 'always' is unknown"):
        moerun.EngineConfig(calibrate="always")


@pytest.mark.parametrize("damage", [b"", b"{}", b"flipped", b"cut"])
def test_a_damaged_entry_is_timed_again(
    gpu: FakeDriver, experts: oracle.Experts, timed: list, cache_folder: Path, damage: bytes, caplog
) -> None:
    with engine_with(calibrate="once") as engine:
        add(engine, experts)
    (file,) = cache_folder.iterdir()
    good = file.read_bytes()
    flipped = good.replace(b"10", b"11", 1)
    file.write_bytes({b"flipped": flipped, b"cut": good[:-30]}.get(damage, damage))
    with engine_with(calibrate="once") as engine:
        add(engine, experts)
    assert len(timed) == 2
    assert "damaged, timing again" in caplog.text
    assert file.read_bytes() == good


def test_without_a_place_to_keep_it(
    gpu: FakeDriver, experts: oracle.Experts, timed: list, monkeypatch: pytest.MonkeyPatch, tmp_path, caplog
) -> None:
    monkeypatch.setenv("MOERUN_CACHE", "off")
    with engine_with(calibrate="once") as engine:
        add(engine, experts)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "file"))
    with engine_with(calibrate="once") as engine:
        assert costs(add(engine, experts))[0] == pytest.approx(10)
    assert len(timed) == 2
    assert "cannot keep a calibration here" in caplog.text


def test_times_of_a_busy_machine_are_not_used(
    gpu: FakeDriver, experts: oracle.Experts, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, caplog
) -> None:
    rng = np.random.default_rng(0)
    wild = Points(
        [(n, t, s, us * float(rng.choice([1, 30]))) for n, t, s, us in GOOD.cpu], GOOD.gpu, GOOD.copies, BLOB
    )
    monkeypatch.setattr("moerun.calibration.calibrator._time", lambda layer: wild)
    with engine_with(calibrate="off") as engine:
        guess = costs(add(engine, experts))
    with engine_with(calibrate="once") as engine:
        assert costs(add(engine, experts)) == guess
    assert "something else was running" in caplog.text
    assert not cache_folder.exists()


def test_a_machine_that_cannot_be_timed_still_runs(gpu: FakeDriver, experts: oracle.Experts, caplog) -> None:
    caplog.set_level(logging.WARNING)
    with engine_with(calibrate="once") as engine:
        gpu.fail("cuLaunchKernel", 1, 1)
        layer = add(engine, experts)
        assert (
            "costs begin with a guess, as they cannot be timed: launching a kernel: cuLaunch" in caplog.text
        )
        batch = expert_layers.random_batch(3, HIDDEN, EXPERTS, TOP_K)
        oracle.layer(experts, *batch).check(layer.forward(*batch))
        alone = expert_layers.random_experts(1, HIDDEN, INTER)
        single = engine.add_layer(expert_layers.spec_of(alone, 1), expert_layers.tensors_of(alone))
        assert single.cost is not None


def test_made_up_experts_are_a_layer_of_the_shape() -> None:
    spec = moerun.LayerSpec(64, 256, 128, top_k=4)
    smaller, memory = made_up_layer(spec)
    assert 8 <= smaller.num_experts <= 64
    assert len(memory.gate) == smaller.num_experts
    with moerun.Engine(device="cpu", cpu_threads=1) as engine:
        layer = engine.add_layer(smaller, memory)
        x, ids = torch.randn(2, 256), torch.tensor([[0, 1], [2, smaller.num_experts - 1]])
        y = layer.forward(x, ids, torch.ones(2, 2))
    assert torch.isfinite(y).all()
    assert y.abs().max() > 0


def test_the_name_of_an_entry_changes_with_what_was_timed() -> None:
    subject = {"cpu": "a", "threads": 1}
    cache.save(subject, GOOD)
    assert cache.load(subject) == GOOD
    assert cache.load({**subject, "threads": 2}) is None
