"""The cache of compiled kernels: hits, damage, and all that makes a kernel another one. Compiles nothing."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from moerun.errors import KernelError
from moerun.kernels import LayerKernels, build, cache, described_kernels, layer_kernels
from moerun.kernels.compile import Binary, Job
from moerun.kernels.contract import PARAMETERS, KernelShape

SHAPE = KernelShape(72, 40, 2, "int4_g32", "bf16")


class Compiler:
    """Stands in for the processes that compile; remembers what it was asked for."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __call__(
        self, jobs: Sequence[Job], on_done: Callable[[], object], workers: int | None
    ) -> list[Binary]:
        self.jobs += jobs
        return [Binary(str(job).encode(), replace(job.tile, num_stages=1), 1024, 2) for job in jobs]

    def count(self) -> int:
        """Jobs since the last call."""
        jobs, self.jobs = self.jobs, []
        return len(jobs)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.7.1")
    stand_in = Compiler()
    monkeypatch.setattr(build, "compile_all", stand_in)
    return stand_in


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kernels").iterdir())


def all_kernels(kernels: LayerKernels) -> int:
    return 1 + sum(3 if regime.activate else 2 for regime in kernels.regimes)


def test_the_second_time_nothing_is_compiled(compiler: Compiler, tmp_path: Path) -> None:
    first = layer_kernels(SHAPE, 90)
    assert compiler.count() == all_kernels(first) == len(files(tmp_path))
    assert layer_kernels(SHAPE, 90) == first
    assert compiler.count() == 0
    assert first.combine.function == "moerun_combine"
    for regime in first.regimes:
        assert regime.gate_up.function == "moerun_gate_up"
        assert regime.down.function == "moerun_down"
        assert (regime.activate is None) == (regime.gate_up.split == 1)
        assert regime.down.parameter_bytes == (8,) * len(PARAMETERS["moerun_down"])
        assert (regime.down.shared_bytes, regime.down.scratch_parameters) == (1024, 2)
    assert first.combine.parameter_bytes == (8, 8, 8, 8, 4)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.7, 1.0])
def test_a_damaged_file_is_reported_and_compiled_again(
    compiler: Compiler, tmp_path: Path, caplog: pytest.LogCaptureFixture, at: float
) -> None:
    first = layer_kernels(SHAPE, 90)
    compiler.count()
    victim = files(tmp_path)[2]
    content = bytearray(victim.read_bytes())
    content[int((len(content) - 1) * at)] ^= 4
    victim.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert layer_kernels(SHAPE, 90) == first
    assert f"{victim}: damaged, compiling again" in caplog.text
    assert compiler.count() == 1
    assert layer_kernels(SHAPE, 90) == first
    assert compiler.count() == 0


@pytest.mark.parametrize("length", [0, 10])
def test_a_short_file_is_damage_too(compiler: Compiler, tmp_path: Path, length: int) -> None:
    first = layer_kernels(SHAPE, 90)
    compiler.count()
    os.truncate(files(tmp_path)[0], length)
    assert layer_kernels(SHAPE, 90) == first
    assert compiler.count() == 1


def test_other_versions_sources_architectures_and_shapes_are_other_kernels(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = all_kernels(layer_kernels(SHAPE, 90))
    compiler.count()
    layer_kernels(SHAPE, 80)
    assert compiler.count() == count
    layer_kernels(replace(SHAPE, alpha=1.0), 90)
    assert compiler.count() == count
    with monkeypatch.context() as changed:
        changed.setattr(importlib.metadata, "version", lambda package: "3.8.0")
        layer_kernels(SHAPE, 90)
    assert compiler.count() == count
    with monkeypatch.context() as changed:
        changed.setattr(cache, "_source_hash", lambda: "edited")
        layer_kernels(SHAPE, 90)
    assert compiler.count() == count
    layer_kernels(SHAPE, 90)
    assert compiler.count() == 0


def test_without_a_cache_everything_is_compiled(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOERUN_CACHE", "off")
    count = all_kernels(layer_kernels(SHAPE, 90))
    layer_kernels(SHAPE, 90)
    assert compiler.count() == 2 * count


def test_a_folder_that_cannot_be_written_costs_only_time(
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        layer_kernels(SHAPE, 90)
    assert "cannot keep GPU kernels here" in caplog.text


def test_triton_missing_or_old(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(KernelError, match=r"need triton, which is not installed: pip install 'triton>=3\.5'"):
        layer_kernels(SHAPE, 90)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.2.0")
    with pytest.raises(KernelError, match=r"need triton >= 3\.5; 3\.2\.0 is installed"):
        layer_kernels(SHAPE, 90)


def test_an_unsupported_architecture(compiler: Compiler) -> None:
    with pytest.raises(KernelError, match="sm_75"):
        layer_kernels(SHAPE, 75)
    assert compiler.count() == 0


def test_descriptions_stand_where_cubins_would(compiler: Compiler) -> None:
    compiled, described = layer_kernels(SHAPE, 90), described_kernels(SHAPE, 90)
    compiler.count()
    assert [r.name for r in described.regimes] == [r.name for r in compiled.regimes]
    for regime in described.regimes:
        assert regime.down.image.startswith(b"moerun_kernel 1\nfunction moerun_down\nformat int4_g32\n")
    assert compiler.count() == 0
