"""Engines with a GPU on the stand-in driver (tests/fakecuda): no GPU, no Triton, and every mistake is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_gpu import FakeGpu, build_fake_gpu


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in libcuda.so.1."""
    return build_fake_gpu(tmp_path_factory.mktemp("fakecuda") / "libcuda.so.1")


@pytest.fixture
def gpu(fake_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """The stand-in driver in this process: afterwards nothing may be left on it, and nothing have been
    violated."""
    monkeypatch.setenv("MOERUN_LIBCUDA", str(fake_driver))
    monkeypatch.setenv("MOERUN_KERNELS", "described")
    fake = FakeGpu(fake_driver)
    fake.reset()
    yield fake
    assert fake.violations() == []
    assert fake.leaks() == 0
