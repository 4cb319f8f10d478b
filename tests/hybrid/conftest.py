"""Engines with a GPU on the stand-in driver (tests/fakecuda): no GPU, no Triton, every mistake is counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fake_driver import FakeDriver, build_fake_driver


@pytest.fixture(scope="session")
def driver() -> Path:
    """The stand-in libcuda.so.1."""
    return build_fake_driver()


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The oracle's products are tiny; torch's threads would only disturb the streams'."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    assert fake.counter("unpinned_copies") == 0
    assert fake.leaks() == 0
