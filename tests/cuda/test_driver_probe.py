"""Looking for a GPU: every way in which there may be none has its reason; what a driver tells comes through.

The driver is the stand-in of tests/fakecuda; real devices are the business of tests marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_driver import FakeDriver, build_fake_driver, fake_driver_without
from moerun import _core

Probe = Callable[..., dict[str, Any]]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Probes the stand-in with these variables set."""

    def run(**environment: str) -> dict[str, Any]:
        library = build_fake_driver()
        monkeypatch.setenv("MOERUN_LIBCUDA", str(library))
        for name, value in environment.items():
            monkeypatch.setenv(f"FAKECUDA_{name}", value)
        fake = FakeDriver(library)
        fake.reset()
        found = _core.probe_gpu()
        assert fake.leaks() == 0
        return found

    return run


def test_one_device(probe: Probe) -> None:
    assert len(probe()["devices"]) == 1


def test_devices_come_with_name_capability_and_memory(probe: Probe) -> None:
    found = probe(DEVICES="2", COMPUTE="86", MEMORY=str(3 << 30))
    assert found["reason"] == ""
    assert found["driver_version"] == 12080
    assert found["devices"] == [
        {"name": f"Fake device {i}", "compute_capability": "8.6", "memory_bytes": 3 << 30} for i in range(2)
    ]


def test_a_driver_without_a_device_says_so_with_its_own_error(probe: Probe) -> None:
    found = probe(DEVICES="0")
    assert found["devices"] == []
    assert "cuInit" in found["reason"]
    assert "CUDA_ERROR_NO_DEVICE (100)" in found["reason"]
    assert "nvidia-smi" in found["reason"]


def test_a_driver_that_starts_and_counts_no_devices(probe: Probe) -> None:
    found = probe(DEVICES="0", INIT="0")
    assert found["driver_version"] == 12080
    assert "shows no device" in found["reason"]


def test_an_error_without_a_name_keeps_its_number(probe: Probe) -> None:
    found = probe(INIT="12345")
    assert "an unknown error (12345)" in found["reason"]


@pytest.mark.parametrize("name", ["cuDriverGetVersion", "cuDeviceGetName", "cuDeviceTotalMem_v2"])
def test_an_error_on_the_way_names_the_call(probe: Probe, name: str) -> None:
    found = probe(DEVICES="2", FAIL=f"{name}:1:3")
    assert found["devices"] == []
    assert name in found["reason"]


def test_an_old_driver(probe: Probe) -> None:
    found = probe(DRIVER_VERSION="11080")
    assert found["devices"] == []
    assert "too old: it serves CUDA 11.8" in found["reason"]
    assert "update" in found["reason"]


def test_a_driver_whose_library_and_module_differ(probe: Probe) -> None:
    assert "reboot" in probe(INIT="803")["reason"]


def test_a_library_that_lacks_functions_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", str(fake_driver_without("cuStreamWaitEvent", tmp_path)))
    assert "lacks cuStreamWaitEvent" in _core.probe_gpu()["reason"]


def test_a_library_that_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOERUN_LIBCUDA", "libm.so.6")
    assert "libm.so.6 lacks cuDriverGetVersion" in _core.probe_gpu()["reason"]


def test_a_driver_that_cannot_describe_parameters_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuFuncGetParamInfo came with CUDA 12.4."""
    monkeypatch.setenv("MOERUN_LIBCUDA", str(fake_driver_without("cuFuncGetParamInfo", tmp_path)))
    assert _core.probe_gpu()["reason"] == ""


def test_no_driver_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "libcuda.so.1"
    monkeypatch.setenv("MOERUN_LIBCUDA", str(missing))
    found = _core.probe_gpu()
    assert found["devices"] == []
    assert found["library"] == str(missing)
    assert "no CUDA driver" in found["reason"]
    assert "MOERUN_LIBCUDA" in found["reason"]
