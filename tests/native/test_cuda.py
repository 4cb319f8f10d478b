"""The CUDA driver layer on the stand-in driver: plain, under AddressSanitizer with
UndefinedBehaviorSanitizer, and under ThreadSanitizer.

What is tested stands in the groups of cuda_test.cc.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fake_driver import build_fake_driver
from native_programs import SANITIZERS, all_in_one, build, run, skip_unless_sanitizer_works

SOURCES = [
    "cuda/device_info.cc",
    "cuda/driver_error.cc",
    "cuda/driver_table.cc",
    "cuda/handles.cc",
    "cuda/kernel.cc",
    "tests/native/cuda_owners_test.cc",
    "tests/native/cuda_order_test.cc",
    "tests/native/cuda_refusals_test.cc",
    "tests/native/cuda_faults_test.cc",
    "tests/native/cuda_test.cc",
]


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitizer(request, tmp_path_factory) -> str:
    skip_unless_sanitizer_works(SANITIZERS[request.param], tmp_path_factory.mktemp("sanitizer"))
    return request.param


@pytest.fixture(scope="module")
def programs(sanitizer: str) -> tuple[Path, Path]:
    """The test program and the stand-in driver."""
    flags = [*SANITIZERS[sanitizer], "-Og"]  # with -O1, GCC takes three times as long over UBSan's checks
    program = build({all_in_one(SOURCES, "cuda_test"): []}, "cuda_test", flags)
    return program, build_fake_driver(flags)


def run_group(programs: tuple[Path, Path], group: str) -> subprocess.CompletedProcess[str]:
    program, driver = programs
    return run(str(program), group, MOERUN_LIBCUDA=str(driver))


@pytest.mark.parametrize("group", ["owners", "order", "refusals", "failures", "sticky failures", "threads"])
def test_the_driver_layer(programs: tuple[Path, Path], group: str) -> None:
    done = run_group(programs, group)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout == "all good\n"


def test_a_missing_wait_is_found(programs: tuple[Path, Path], sanitizer: str) -> None:
    """The program leaves out a wait between a copy and a kernel. The stand-in finds it by itself; to
    ThreadSanitizer it is a race."""
    done = run_group(programs, "missing wait")
    if sanitizer == "thread":
        assert "data race" in done.stderr, done.stdout + done.stderr[-6000:]
    else:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        assert done.stdout == "all good\n"


def test_a_write_that_comes_too_early_is_found(programs: tuple[Path, Path], sanitizer: str) -> None:
    """A slot is filled again while its kernel may read it. To ThreadSanitizer it may be a race."""
    done = run_group(programs, "early write")
    raced = sanitizer == "thread" and "data race" in done.stderr
    assert raced or done.stdout == "all good\n", done.stdout[-3000:] + done.stderr[-6000:]
