"""``moerun doctor --calibrate``: checkpoints and shapes, with and without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_driver import FakeDriver
from moerun.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_checkpoint_without_a_gpu(capsys, demo: Path, own_cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", "/nowhere/libcuda.so.1")
    assert main(["doctor", "--calibrate", str(demo), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["hidden"], report["intermediate"], report["format"]) == (256, 64, "bf16")
    assert report["gpu"] is None
    assert len(report["points"]["cpu"]) == 8
    assert set(report["cpu_us"]) == {"first", "expert", "token", "part"}
    assert report["cpu_residual"] >= 0
    assert "gpu_us" not in report


def test_a_shape_with_a_gpu(gpu: FakeDriver, capsys, own_cache: Path) -> None:
    assert main(["doctor", "--calibrate", "PyCode-MoE", "--experts", "int8"]) == 0
    out = capsys.readouterr().out
    for part in ("PyCode-MoE: 256 x 64 int8", "CPU", "GPU", "copy", "GB/s", "off by", "%"):
        assert part in out


def test_what_is_neither(capsys) -> None:
    assert main(["doctor", "--calibrate", "no-such-model"]) == 1
    assert "neither a checkpoint nor a shape; shapes: Mixtral-8x7B" in capsys.readouterr().err
