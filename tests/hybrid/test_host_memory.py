"""Where experts lie in host memory: page-locked where they are, in a copy, or behind small buffers."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver

EXPERTS, HIDDEN, INTER, TOP_K = 4, 64, 64, 2
OUT_OF_MEMORY = 2  # CUresult


def check_layer(engine: moerun.Engine, quant: str | None) -> None:
    """Results are those of an engine without a GPU."""
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=4)
    tensors = expert_layers.tensors_of(experts)
    spec = moerun.LayerSpec(EXPERTS, HIDDEN, INTER, TOP_K, quant=quant)
    layer = engine.add_layer(spec, tensors)
    del tensors
    with moerun.Engine(device="cpu", cpu_threads=1, isa="ref") as alone:
        same = alone.add_layer(spec, expert_layers.tensors_of(experts))
        for seed in range(4):
            batch = expert_layers.random_batch(2, HIDDEN, EXPERTS, TOP_K, seed=seed)
            expected = same.forward(*batch)
            assert (layer.forward(*batch) - expected).norm() <= 1e-2 * expected.norm()
            if quant is None:
                oracle.layer(experts, *batch).check(layer.forward(*batch))


def engine_of(**options: object) -> moerun.Engine:
    settings = {"schedule": "ondemand", "gpu_cache": "1MiB"} | options
    return moerun.Engine(device="cuda", cpu_threads=1, isa="ref", **settings)


def test_blobs_are_locked_where_they_lie(gpu: FakeDriver) -> None:
    with engine_of() as engine:
        pinned = gpu.counter("pinned_allocations")
        check_layer(engine, "int8")
        assert gpu.counter("registered") == 1
        assert gpu.calls("cuMemHostRegister_v2") == 1
        check_layer(engine, None)  # plain tensors become blobs, in memory of their own
        assert gpu.counter("registered") == 1
        assert gpu.counter("pinned_allocations") > pinned


@pytest.mark.parametrize(("refused", "registered"), [("none", 0), ("writable", 1)])
def test_what_cannot_be_locked_in_place(
    gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, refused: str, registered: int, caplog
) -> None:
    """A driver that locks nothing of others gets a copy; one that cannot lock for reading only, locks for
    both. Nobody needs to know."""
    monkeypatch.setenv("FAKECUDA_REGISTER", refused)
    gpu.reset()
    with engine_of() as engine:
        check_layer(engine, "int4_g32")
        assert gpu.counter("registered") == registered
    assert caplog.records == []


def test_what_cannot_be_locked_at_all(gpu: FakeDriver, caplog) -> None:
    with engine_of() as engine:
        for call, n in (("cuMemHostRegister_v2", 1), ("cuMemHostRegister_v2", 2), ("cuMemHostAlloc", 1)):
            gpu.fail(call, n, OUT_OF_MEMORY)
        check_layer(engine, "int8")
        assert gpu.counter("registered") == 0
    assert len([r for r in caplog.records if "staging buffers" in r.message]) == 1


def test_staged_locks_nothing(gpu: FakeDriver) -> None:
    with engine_of(store="staged") as engine:
        check_layer(engine, "int8")
        assert gpu.calls("cuMemHostRegister_v2") == 0


def test_a_model_from_the_cache_of_quantised_experts(
    gpu: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped files are locked, one for each layer, the second time as the first."""
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path))
    checkpoint = moerun.Checkpoint(Path(__file__).parents[2] / "examples" / "pycode-moe")
    for _ in range(2):
        with engine_of() as engine:
            for number in checkpoint.moe_layers:
                engine.add_layer_from(checkpoint, number, "int8")
            assert gpu.counter("registered") == len(checkpoint.moe_layers)
        del engine
        gc.collect()  # an engine and its layers know each other
        assert gpu.counter("registered") == 0
