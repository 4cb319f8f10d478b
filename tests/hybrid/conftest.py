"""Engines with a GPU on the stand-in driver (tests/fakecuda): no GPU, no Triton, and every mistake is counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_driver import FakeDriver, build_fake_driver


@pytest.fixture(scope="session")
def driver() -> Path:
    """The stand-in libcuda.so.1."""
    return build_fake_driver()


@pytest.fixture
def gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The stand-in driver in this process. Afterwards nothing may be left on it, and nothing have been
    violated."""
    monkeypatch.setenv("MOERUN_LIBCUDA", str(driver))
    monkeypatch.setenv("MOERUN_KERNELS", "described")
    fake = FakeDriver(driver)
    fake.reset()
    yield fake
    gc.collect()  # an engine and its layers know each other
    assert fake.violations() == []
    assert fake.leaks() == 0
