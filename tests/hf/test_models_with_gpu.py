"""Whole models with experts on CPU and GPU, on the stand-in driver: text and logits as without a GPU.

Every cache here is smaller than the experts, so that all ways are taken: cached, copied, run on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import moerun
import moerun.hf.loading
from fake_driver import FakeDriver

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
NEW_TOKENS = 24
SCHEDULES = ("static", "ondemand", "balanced")


def prompt(rows: int, tokens: int) -> torch.Tensor:
    """Random ids without the special ones, [rows, tokens]."""
    return torch.randint(3, 128, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return moerun.hf.from_pretrained(folder, dtype="fp32", cpu_threads=1, **options)


def greedy(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    ids = ids.to(model.device)
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length).cpu()


@torch.no_grad()
def check_equal(ours: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Logits of a batch, and the greedy text of one prompt."""
    ids = prompt(2, 17)
    logits = ours(ids.to(ours.device)).logits.cpu()
    torch.testing.assert_close(logits, expected(ids).logits, rtol=0, atol=1e-4)
    assert torch.equal(greedy(ours, prompt(1, 9)), greedy(expected, prompt(1, 9)))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_random_models(
    gpu: FakeDriver, random_checkpoint: Callable[..., Path], family: str, schedule: str
) -> None:
    folder = random_checkpoint(family, dtype="bf16")
    slots = 5  # of 12 experts in two layers
    size = slots * moerun.Checkpoint(folder).expert_bytes + 4096  # blobs are padded
    ours = load(folder, device="cuda", gpu_cache=size, schedule=schedule)
    check_equal(ours, load(folder, device="cpu"))
    stats = ours.moerun_engine.stats()["gpu"]
    assert 2 <= stats["slots"] <= slots
    assert stats["hits"] > 0
    assert stats["misses"] > 0


def test_the_demo_model(gpu: FakeDriver) -> None:
    ours = load(DEMO, device="cuda", gpu_cache="4MiB", schedule="balanced")
    check_equal(ours, load(DEMO, device="cpu"))
    stats = ours.moerun_engine.stats()["gpu"]
    assert 0 < stats["slots"] < 6 * 32
    assert stats["copies"] > 0


def test_quantised_experts(gpu: FakeDriver, random_checkpoint: Callable[..., Path]) -> None:
    """The GPU takes the very codes that the CPU takes."""
    folder = random_checkpoint("qwen3_moe", dtype="bf16")
    ours = load(folder, experts="int8", device="cuda", gpu_cache="40KiB", schedule="ondemand")
    expected = load(folder, experts="int8", device="cpu", isa="ref")
    check_equal(ours, expected)
    assert ours.moerun_engine.stats()["gpu"]["evictions"] > 0


def test_without_a_driver(
    random_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", "/nowhere/libcuda.so.1")
    folder = random_checkpoint("qwen3_moe")
    with pytest.raises(moerun.GpuError, match=r"no CUDA driver.*install NVIDIA's driver"):
        load(folder, device="cuda")
    caplog.set_level(logging.INFO, logger="moerun")
    model = load(folder, device="auto")
    assert model.moerun_engine.gpu is None
    assert model.device.type == "cpu"
    said = [record.message for record in caplog.records if record.name == "moerun"]
    assert len(said) == 1
    assert said[0].startswith("running on the CPU: no CUDA driver")


def test_a_cache_that_is_too_small_or_too_large(
    gpu: FakeDriver, random_checkpoint: Callable[..., Path]
) -> None:
    folder = random_checkpoint("qwen3_moe")
    with pytest.raises(ValueError, match=r"gpu_cache holds 0 experts.*raise gpu_cache"):
        load(folder, device="cuda", gpu_cache=100, schedule="ondemand")
    with pytest.raises(ValueError, match=r"gpu_cache asks for 8.0 GiB.*lower it"):
        load(folder, device="cuda", gpu_cache="8GiB")


def test_a_passed_engine_brings_its_gpu(gpu: FakeDriver, random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint("qwen3_moe")
    with moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand") as engine:
        ours = moerun.hf.from_pretrained(folder, dtype="fp32", engine=engine)
        check_equal(ours, load(folder, device="cpu"))
        assert engine.stats()["gpu"]["copies"] > 0


@pytest.fixture
def moves(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where a model is moved when torch can, and how often free device memory had been asked for by then."""
    moves: list[tuple[str, int]] = []

    def to(model: PreTrainedModel, device: str) -> PreTrainedModel:
        moves.append((device, gpu.calls("cuMemGetInfo_v2")))
        return model

    monkeypatch.setattr(moerun.hf.loading, "_torch_has_gpu", lambda: True)
    monkeypatch.setattr(PreTrainedModel, "to", to)
    return moves


def test_the_cache_takes_what_the_dense_parts_leave(
    moves: list, gpu: FakeDriver, random_checkpoint: Callable[..., Path]
) -> None:
    model = load(random_checkpoint("qwen3_moe"), gpu_cache="auto")  # device="auto"
    assert model.moerun_engine.gpu is not None
    assert moves == [("cuda", 0)]
    assert gpu.calls("cuMemGetInfo_v2") > 0


def test_the_dense_parts_come_back_from_a_gpu_without_kernels(
    moves: list, gpu: FakeDriver, random_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKECUDA_COMPUTE", "70")
    gpu.reset()
    model = load(random_checkpoint("qwen3_moe"), device="auto")
    assert model.moerun_engine.gpu is None
    assert [device for device, _ in moves] == ["cuda", "cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_real_gpu_the_dense_parts_are_there_too(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint("qwen3_moe", dtype="bf16")
    ours = load(folder, device="cuda", schedule="ondemand")
    assert {parameter.device.type for parameter in ours.parameters()} == {"cuda"}
    check_equal(ours, load(folder, device="cpu"))
    assert ours.moerun_engine.stats()["gpu"]["copies"] > 0
