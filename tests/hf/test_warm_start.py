"""A cache that begins with what earlier runs used: what is recorded, when it is used, that it never harms."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moerun
from fake_driver import FakeDriver
from moerun import policy

Random = Callable[..., Path]


@pytest.fixture
def folder(random_checkpoint: Random) -> Path:
    return random_checkpoint("qwen3_moe")


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "usage"


def engine_of(folder: Path, slots: int = 4, **options: Any) -> tuple[moerun.Engine, list[moerun.Layer]]:
    checkpoint = moerun.Checkpoint(folder)
    size = slots * (checkpoint.expert_bytes + 512)
    engine = moerun.Engine(device="cuda", cpu_threads=1, gpu_cache=size, **options)
    return engine, [engine.add_layer_from(checkpoint, number) for number in checkpoint.moe_layers]


def use(layer: moerun.Layer, experts: list[int], times: int = 1) -> torch.Tensor:
    """A batch in which every token goes to these experts."""
    x = torch.arange(times * layer.spec.hidden_size).reshape(times, -1).float().cos()
    ids = torch.tensor([experts]).expand(times, -1).contiguous()
    return layer.forward(x, ids, torch.ones(ids.shape))


def fill(engine: moerun.Engine, expected: int) -> None:
    """Until the idle scheduler has copied so many experts."""
    engine.start()
    for _ in range(20_000):
        if engine.stats()["gpu"]["resident"] == expected:
            return
        torch.randn(10_000)
    raise AssertionError(engine.stats()["gpu"])


def test_the_most_used_experts_are_there_from_the_start(gpu: FakeDriver, folder: Path, records: Path) -> None:
    engine, layers = engine_of(folder)
    for layer, favourites in zip(layers, ([1, 4], [0, 3]), strict=True):
        use(layer, favourites, times=20)
        use(layer, [2, 5])
    engine.close()
    (record,) = records.iterdir()
    counts = json.loads(record.read_text().splitlines()[0])
    assert [counts[str(number)] for number in sorted(map(int, counts))] == [
        [0, 20, 1, 0, 20, 1],
        [20, 0, 1, 20, 0, 1],
    ]

    engine, layers = engine_of(folder, schedule="static")
    fill(engine, expected=4)
    for layer, favourites in zip(layers, ([1, 4], [0, 3]), strict=True):
        use(layer, favourites)
    stats = engine.stats()
    engine.close()
    assert stats["gpu"]["warm_copies"] == 4
    assert stats["gpu"]["hits"] == 4
    assert stats["gpu"]["copies"] == stats["gpu"]["misses"] == 0


def test_a_warm_cache_gives_the_same(gpu: FakeDriver, folder: Path) -> None:
    results = []
    for warm in (False, True, True):
        engine, layers = engine_of(folder, schedule="ondemand", warm_start=warm)
        engine.start()
        results.append(
            torch.cat([use(layer, ids, 3) for ids in ([0, 1], [2, 5], [3, 0]) for layer in layers])
        )
        assert (engine.stats()["gpu"]["warm_copies"] > 0) == (len(results) == 3)
        engine.close()
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nonsense",
        {"1": [1, 2, 3]},
        {"1": ["a"] * 6, "2": None},
        {"1": [-1] * 6},
        {"1": [float("inf")] * 6},
        [],
        {"900": [1] * 6},
        {"1": [0] * 6},
    ],
)
def test_a_record_that_does_not_fit_is_ignored(
    gpu: FakeDriver, folder: Path, records: Path, content: Any
) -> None:
    """Damaged, of another model, or with numbers that are no counts."""
    engine, layers = engine_of(folder)
    use(layers[0], [0, 1])
    engine.close()
    (record,) = records.iterdir()
    if isinstance(content, str):
        record.write_text(content)
    else:
        moerun.cache_files.save_json(record, content)
    engine, layers = engine_of(folder)
    engine.start()
    use(layers[0], [2, 3])
    assert engine.stats()["gpu"]["warm_copies"] == 0
    engine.close()
    assert "forgetting" not in record.read_text()
    engine, layers = engine_of(folder)
    fill(engine, expected=2)
    engine.close()


def test_old_usage_fades(gpu: FakeDriver, folder: Path, records: Path, monkeypatch) -> None:
    monkeypatch.setattr("moerun.usage_record._MEMORY_TOKENS", 8)
    for favourites in ([0, 1], [2, 3]):
        engine, layers = engine_of(folder)
        use(layers[0], favourites, times=32)
        engine.close()
    (record,) = records.iterdir()
    (counts,) = [c for c in json.loads(record.read_text().splitlines()[0]).values() if any(c)]
    assert counts == [8, 8, 32, 32, 0, 0]


def test_nothing_is_kept_without_a_cache_or_a_use(
    gpu: FakeDriver, folder: Path, records: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    engine, layers = engine_of(folder)
    engine.close()
    engine, layers = engine_of(folder, warm_start=False)
    use(layers[0], [0, 1])
    engine.close()
    monkeypatch.setenv("MOERUN_CACHE", "off")
    engine, layers = engine_of(folder)
    use(layers[0], [0, 1])
    engine.close()
    assert not records.exists()
    records.parent.mkdir(exist_ok=True)
    records.write_text("in the way")
    monkeypatch.setenv("MOERUN_CACHE", str(records.parent))
    engine, layers = engine_of(folder)
    use(layers[0], [0, 1])
    engine.close()
    assert "cannot keep how experts were used" in caplog.text


def test_a_model_that_goes_leaves_its_record(gpu: FakeDriver, folder: Path, records: Path) -> None:
    """Nobody closes the engine of a transformers model."""
    import moerun.hf

    model = moerun.hf.from_pretrained(folder, dtype="fp32", device="cuda", cpu_threads=1, gpu_cache="64KiB")
    model(torch.arange(3, 20)[None])
    del model
    gc.collect()
    (record,) = records.iterdir()
    assert len(json.loads(record.read_text().splitlines()[0])) == 2


def test_the_end_of_the_process_leaves_it_too(gpu: FakeDriver, folder: Path, records: Path) -> None:
    script = (
        "import sys, os, torch, moerun\n"
        "engine = moerun.Engine(device='cuda', cpu_threads=1, gpu_cache='64KiB')\n"
        "layer = engine.add_layer_from(moerun.Checkpoint(sys.argv[1]), int(sys.argv[2]))\n"
        "layer.forward(torch.ones(1, layer.spec.hidden_size), torch.tensor([[0, 1]]), torch.ones(1, 2))\n"
        "if os.fork() == 0: sys.exit(0)\n"  # whose copy of the engine nobody may ask
        "os.wait()\n"
    )
    number = str(moerun.Checkpoint(folder).moe_layers[0])
    python = [sys.executable, "-W", "ignore:This process:DeprecationWarning"]  # of fork, from Python 3.12 on
    done = subprocess.run([*python, "-c", script, str(folder), number], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(records.iterdir())) == 1


@given(
    name=st.sampled_from(policy.CACHE_POLICIES),
    weights=st.lists(st.integers(0, 50), min_size=6, max_size=6).filter(any),
)
def test_stale_usage_is_forgotten(name: str, weights: list[int]) -> None:
    """After some tens of steps, values are those of a cache that began cold."""
    warm, cold = (policy.CacheValues(name, 6, 2) for _ in range(2))
    warm.start(np.array(weights) / sum(weights))
    rng = np.random.default_rng(0)
    for _ in range(80):
        loads = np.zeros(6, np.int32)
        loads[rng.choice(3, 2, replace=False)] = 1  # never the last three
        warm.observe(loads)
        cold.observe(loads)
    np.testing.assert_allclose(warm.values, cold.values, atol=1e-3)


def test_start_refuses_another_number_of_experts() -> None:
    for name in policy.CACHE_POLICIES:
        with pytest.raises(ValueError, match="one per expert"):
            policy.CacheValues(name, 6, 2).start([1.0])
