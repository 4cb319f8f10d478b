"""Shared set-up. Being here also puts tests/ on sys.path (pytest's "prepend" mode), so that tests in the
folders below can import oracle.py, expert_layers.py and guarded_memory.py."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fake_driver import FakeDriver, build_fake_driver


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Tiny tensors gain nothing from threads, which would spin beside the engine's and other tests'."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C works in every program that a test starts, even if the tests run in the background: there a
    shell lets them ignore it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def drop_privileges() -> Iterator[Callable[[], None]]:
    """A function that takes root's right to read every file away, until the end of the test."""
    user = os.geteuid()
    yield lambda: os.seteuid(65534) if user == 0 else None  # nobody
    os.seteuid(user)


@pytest.fixture(scope="session")
def driver() -> Path:
    """The stand-in libcuda.so.1."""
    return build_fake_driver()


@pytest.fixture
def gpu(
    driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeDriver]:
    """The stand-in CUDA driver (tests/fakecuda) in this process: no GPU, no Triton, every mistake is counted.

    Afterwards nothing may be left on it, and nothing have been violated.
    """
    monkeypatch.setenv("MOERUN_LIBCUDA", str(driver))
    monkeypatch.setenv("MOERUN_KERNELS", "described")
    monkeypatch.setenv("MOERUN_CALIBRATE", "off")  # seconds, and times of a stand-in say nothing
    if "MOERUN_CACHE" not in os.environ:  # how experts were used is kept there
        monkeypatch.setenv("MOERUN_CACHE", str(tmp_path_factory.mktemp("cache")))
    fake = FakeDriver(driver)
    fake.reset()
    yield fake
    gc.collect()  # an engine and its layers know each other
    assert fake.violations() == []
    assert fake.counter("unpinned_copies") == 0
    assert fake.leaks() == 0
