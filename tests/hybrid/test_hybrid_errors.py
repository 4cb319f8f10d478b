"""What an engine with a GPU says when something is missing, too small or fails."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver
from moerun.memory_size import parse_memory_size

EXPERTS, HIDDEN, INTER, TOP_K = 6, 24, 40, 2
OUT_OF_MEMORY, ILLEGAL_ADDRESS, INVALID_VALUE = 2, 700, 1  # CUresult
BLOB = 15104  # bytes of one such expert


@pytest.fixture
def experts() -> oracle.Experts:
    made = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=5)
    assert expert_layers.blob_bytes(made) == BLOB
    return made


def add(engine: moerun.Engine, experts: oracle.Experts) -> moerun.Layer:
    return engine.add_layer(expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts))


def check(layer: moerun.Layer, experts: oracle.Experts, seed: int = 0) -> None:
    batch = expert_layers.random_batch(3, HIDDEN, EXPERTS, TOP_K, seed=seed)
    oracle.layer(experts, *batch).check(layer.forward(*batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "ondemand", "gpu_cache": BLOB},
            "gpu_cache holds 1 experts of 1MiB, but one token needs 2; raise gpu_cache to 1MiB",
        ),
        (
            {"schedule": "gpu", "gpu_cache": 3 * BLOB},
            "gpu_cache holds 3 experts .*keeps all 6 of every layer there; raise gpu_cache",
        ),
    ],
)
def test_a_budget_that_is_too_small(gpu: FakeDriver, experts, options: dict[str, Any], message: str) -> None:
    with (
        moerun.Engine(device="cuda", cpu_threads=1, **options) as engine,
        pytest.raises(ValueError, match=message),
    ):
        add(engine, experts)


def test_a_budget_above_what_is_free(gpu: FakeDriver) -> None:
    with pytest.raises(ValueError, match=r"gpu_cache asks for 2.0 GiB, but only 1.0 GiB of .* are free"):
        moerun.Engine(device="cuda", gpu_cache="2GiB")


@pytest.mark.parametrize("size", [0, 0.0, "auto", "50%", "1MiB", 1])
def test_budgets_that_fit(gpu: FakeDriver, experts, size: Any) -> None:
    """Without a slot everything runs on the CPU."""
    with moerun.Engine(device="cuda", cpu_threads=1, gpu_cache=size) as engine:
        layer = add(engine, experts)
        check(layer, experts)
        slots = engine.stats()["gpu"]["slots"]
    assert slots == (0 if size in (0, 0.0, 1) else EXPERTS)


def test_without_a_driver(experts, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", "/nowhere/libcuda.so.1")
    with pytest.raises(moerun.GpuError, match="no CUDA driver"):
        moerun.Engine(device="cuda")
    caplog.set_level(logging.INFO, logger="moerun")
    with moerun.Engine(device="auto", cpu_threads=1) as engine:
        assert engine.gpu is None
        check(add(engine, experts), experts)
    assert "running on the CPU: no CUDA driver" in caplog.text


def test_an_unsupported_architecture(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKECUDA_COMPUTE", "70")
    gpu.reset()
    with pytest.raises(moerun.MoerunError, match="sm_70"):
        moerun.Engine(device="cuda")
    with moerun.Engine(device="auto", cpu_threads=1) as engine:
        assert engine.gpu is None


@pytest.mark.parametrize("store", ["auto", "pinned"])
def test_experts_that_cannot_be_pinned(gpu: FakeDriver, experts, store: str, caplog) -> None:
    """They go through small pinned buffers, and that is said once."""
    options: dict[str, Any] = {"schedule": "ondemand", "gpu_cache": 4 * BLOB, "store": store}
    with moerun.Engine(device="cuda", cpu_threads=1, **options) as engine:
        gpu.fail("cuMemHostAlloc", 1, OUT_OF_MEMORY)
        if store == "pinned":
            with pytest.raises(moerun.GpuError, match=r"cannot be page-locked.*use store='auto' or 'staged'"):
                add(engine, experts)
            return
        layers = [add(engine, experts)]
        gpu.fail("cuMemHostAlloc", 1, OUT_OF_MEMORY)
        layers.append(add(engine, experts))
        for layer in layers * 2:
            check(layer, experts)
    said = [record for record in caplog.records if "staging buffers" in record.message]
    assert len(said) == 1


@pytest.mark.parametrize("call", ["cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuEventRecord"])
def test_an_engine_survives_a_call_that_fails_once(gpu: FakeDriver, experts, call: str) -> None:
    with moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand", gpu_cache=4 * BLOB) as engine:
        layer = add(engine, experts)
        check(layer, experts)
        gpu.fail(call, 1, INVALID_VALUE)
        with pytest.raises(moerun.GpuError, match=rf"{call}.*CUDA_ERROR_INVALID_VALUE"):
            check(layer, experts)
        check(layer, experts)


def test_the_error_of_submitted_work_comes_out_of_wait(gpu: FakeDriver, experts) -> None:
    batch = expert_layers.random_batch(3, HIDDEN, EXPERTS, TOP_K)
    with moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand", gpu_cache=4 * BLOB) as engine:
        layer = add(engine, experts)
        check(layer, experts)
        gpu.fail("cuLaunchKernel", 1, INVALID_VALUE)
        handle = layer.submit(*batch)
        with pytest.raises(moerun.GpuError, match="cuLaunchKernel"):
            handle.wait()
        oracle.layer(experts, *batch).check(layer.submit(*batch).wait())


def test_a_lost_gpu_is_named_by_its_first_cause(gpu: FakeDriver, experts) -> None:
    with moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand", gpu_cache=4 * BLOB) as engine:
        layer = add(engine, experts)
        check(layer, experts)
        gpu.fail("kernel", 1, ILLEGAL_ADDRESS)
        with pytest.raises(moerun.GpuError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            check(layer, experts)
        for _ in range(2):
            with pytest.raises(moerun.GpuError, match=r"has lost its GPU: .*CUDA_ERROR_ILLEGAL_ADDRESS"):
                check(layer, experts)
    gpu.reset()
    with moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand", gpu_cache=4 * BLOB) as engine:
        check(add(engine, experts), experts)


def test_a_cache_that_does_not_fit_becomes_smaller(gpu: FakeDriver, experts) -> None:
    with moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand", gpu_cache=6 * BLOB) as engine:
        layer = add(engine, experts)
        gpu.fail("cuMemAlloc_v2", 1, OUT_OF_MEMORY)
        check(layer, experts)
        stats = engine.stats()["gpu"]
    assert stats["shrunk"] == 1
    assert stats["slots"] == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GiB", 8 << 30),
        ("1.5 GB", 1_500_000_000),
        ("2G", 2 << 30),
        ("512MiB", 512 << 20),
        ("123", 123),
        (77, 77),
        ("25%", 0.25),
        (0.5, 0.5),
        ("auto", None),
    ],
)
def test_amounts_of_memory(text: Any, value: Any) -> None:
    assert parse_memory_size(text, "gpu_cache") == value


@pytest.mark.parametrize("text", ["", "8 Gigs", "-1", "GiB", "120%", True, None, [1]])
def test_what_is_no_amount_of_memory(text: Any) -> None:
    with pytest.raises(ValueError, match="gpu_cache"):
        parse_memory_size(text, "gpu_cache")
