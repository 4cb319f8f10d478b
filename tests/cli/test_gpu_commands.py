"""The command line with a GPU, on the stand-in driver: generate, info, what is missing or does not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fake_driver import FakeDriver
from moerun.cli import arguments, main

GENERATE = ["generate", "--threads", "1", "--max-new-tokens", "8"]
PROMPT = "def add(first, second):"
EXPERTS = 6 * 32  # of the demo model
SLOT_BYTES = (96 << 10) + 256  # one expert in bf16, and the zeros that a blob ends with

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, demo: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``moerun generate``."""
    code = main([*GENERATE, str(demo), PROMPT, *options])
    return code, *capsys.readouterr()


def refused(capsys: Capture, demo: Path, *options: str) -> str:
    """What is said on stderr, in one line, instead of a text."""
    code, out, err = run(capsys, demo, *options)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("moerun: error: ")
    return last


@pytest.mark.parametrize("schedule", ["static", "ondemand", "balanced"])
def test_the_text_is_that_of_the_cpu(gpu: FakeDriver, capsys: Capture, demo: Path, schedule: str) -> None:
    with_gpu = ["--device", "cuda", "--gpu-cache", "4MiB", "--schedule", schedule]
    code, out, err = run(capsys, demo, *with_gpu, "--stats")
    assert code == 0
    assert out == run(capsys, demo, "--device", "cpu")[1]
    for part in ("slots for experts", "hits", "misses", "copies", "evictions", "with a share on the GPU"):
        assert part in err


def test_figures_of_the_gpu(gpu: FakeDriver, capsys: Capture, demo: Path) -> None:
    _, out, _ = run(
        capsys, demo, "--device", "cuda", "--gpu-cache", "4MiB", "--schedule", "ondemand", "--json"
    )
    report = json.loads(out)
    figures = report["gpu"]
    assert report["gpu_name"]
    assert 0 < figures["resident"] <= figures["slots"] == (4 << 20) // SLOT_BYTES
    assert figures["copies"] == figures["misses"] > 0  # this schedule copies whatever is not there
    assert figures["copied_bytes"] == figures["copies"] * SLOT_BYTES
    assert figures["hits"] > 0


def test_figures_without_a_gpu(capsys: Capture, demo: Path) -> None:
    code, out, _ = run(capsys, demo, "--device", "cpu", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["gpu_name"], report["gpu"]) == (None, None)


@pytest.mark.parametrize("size", ["8GiB", "0.5", "50%", "auto", "512 MB", "0"])
def test_sizes(size: str) -> None:
    assert arguments.memory_size(size) == size


@pytest.mark.parametrize("size", ["8 gigs", "-1", "1.5", "120%", ""])
def test_what_is_no_size(capsys: Capture, demo: Path, size: str) -> None:
    code, out, err = run(capsys, demo, f"--gpu-cache={size}")
    assert (code, out) == (2, "")
    assert "--gpu-cache: the size" in err


@pytest.mark.parametrize(
    ("size", "slots"), [("0.5", EXPERTS), ("auto", EXPERTS), ("990KiB", 10), ("0.001", 10), ("0", 0)]
)
def test_a_size_becomes_slots(gpu: FakeDriver, capsys: Capture, demo: Path, size: str, slots: int) -> None:
    """Of a GPU with 1 GiB."""
    code, out, _ = run(capsys, demo, "--device", "cuda", "--gpu-cache", size, "--json")
    assert code == 0
    assert json.loads(out)["gpu"]["slots"] == slots


def test_no_gpu(capsys: Capture, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", "/nowhere/libcuda.so.1")
    said = refused(capsys, demo, "--device", "cuda")
    assert "no CUDA driver" in said
    assert "install NVIDIA's driver" in said
    assert run(capsys, demo, "--device", "auto")[0] == 0


def test_no_triton(gpu: FakeDriver, capsys: Capture, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOERUN_KERNELS")  # "described" kernels need none
    monkeypatch.setitem(sys.modules, "triton", None)
    said = refused(capsys, demo, "--device", "cuda")
    assert "triton, which is not installed: pip install 'moerun[gpu]'" in said
    assert run(capsys, demo, "--device", "auto")[0] == 0


def test_a_cache_that_is_too_small(gpu: FakeDriver, capsys: Capture, demo: Path) -> None:
    options = ["--device", "cuda", "--gpu-cache", "100KiB", "--schedule"]
    assert "gpu_cache holds 1 experts" in refused(capsys, demo, *options, "ondemand")
    assert "keeps all 32 of every layer there; raise gpu_cache" in refused(capsys, demo, *options, "gpu")


def test_a_cache_that_is_too_large(gpu: FakeDriver, capsys: Capture, demo: Path) -> None:
    said = refused(capsys, demo, "--device", "cuda", "--gpu-cache", "8GiB")
    assert "gpu_cache asks for 8.0 GiB, but only 1.0 GiB of the device's 1.0 GiB are free; lower it" in said


@pytest.mark.parametrize(("memory_mib", "fit"), [(64, "all"), (16, "some"), (1, "none")])
def test_info_says_how_many_experts_fit(
    gpu: FakeDriver,
    capsys: Capture,
    demo: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory_mib: int,
    fit: str,
) -> None:
    """As many as get a slot with gpu_cache="auto", when the model's other weights lie there too."""
    monkeypatch.setenv("FAKECUDA_MEMORY", str(memory_mib << 20))
    gpu.reset()
    assert main(["info", str(demo), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    left = (memory_mib << 20) * 7 // 8 - report["other_weights_bytes"]
    assert report["experts_that_fit_on_gpu"] == min(EXPERTS, max(0, left // SLOT_BYTES))
    number = {"all": EXPERTS, "some": report["experts_that_fit_on_gpu"], "none": 0}[fit]
    assert main(["info", str(demo)]) == 0
    assert f"{memory_mib} MiB: room for {number} of {EXPERTS} experts" in capsys.readouterr().out


def test_info_says_why_there_is_no_gpu(capsys: Capture, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", "/nowhere/libcuda.so.1")
    assert main(["info", str(demo)]) == 0
    assert "none: no CUDA driver: /nowhere/libcuda.so.1" in capsys.readouterr().out
    assert main(["info", str(demo), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gpu"] is report["experts_that_fit_on_gpu"] is None
    assert report["why_no_gpu"].startswith("no CUDA driver")
