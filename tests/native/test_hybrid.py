"""CPU and GPU together on the stand-in driver: plain, under AddressSanitizer with UndefinedBehaviorSanitizer,
and under ThreadSanitizer. What is tested stands in hybrid_test.cc, in groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_driver import build_fake_driver
from native_programs import REPOSITORY, SANITIZERS, build, run, skip_unless_sanitizer_works

FOLDERS = ["cuda", "src/cache_table", "src/dma_queue", "src/policy", "src/scheduler"]
SOURCES = {
    **{str(p.relative_to(REPOSITORY)): [] for f in FOLDERS for p in sorted((REPOSITORY / f).glob("*.cc"))},
    "cpu/ref/kernels.cc": ["-ffp-contract=off"],
    "cpu/ref/quantise.cc": ["-ffp-contract=off", "-Wno-psabi"],
    "cpu/activations.cc": [],
    "cpu/cpu_info.cc": [],
    "cpu/grouping.cc": [],
    "cpu/moe_forward.cc": [],
    "cpu/node_split.cc": [],
    "cpu/team.cc": [],
    "cpu/topology.cc": [],
    "src/expert_store/blob_layout.cc": [],
    "src/expert_store/host_blobs.cc": [],
    "src/expert_store/quantise.cc": [],
    "src/trace/trace.cc": [],
    "tests/native/hybrid_faults_test.cc": [],
    "tests/native/hybrid_test.cc": [],
}


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitizer(request, tmp_path_factory) -> str:
    skip_unless_sanitizer_works(SANITIZERS[request.param], tmp_path_factory.mktemp("sanitizer"))
    return request.param


@pytest.fixture(scope="module")
def programs(sanitizer: str) -> tuple[Path, Path, Path]:
    """The test program, the stand-in driver, and the folder of a fake OpenMP runtime."""
    flags = SANITIZERS[sanitizer]
    # GCC 12's ThreadSanitizer takes thread-local memory of a library that is loaded late for a huge range.
    late = ["-ftls-model=initial-exec"]
    openmp = build({"tests/native/fake_openmp.cc": late}, "libgomp_fake.so", flags, ["-shared"])
    return build(SOURCES, "hybrid_test", flags), build_fake_driver(flags), openmp.parent


@pytest.mark.parametrize("group", ["schedules", "recovery", "memory", "faults"])
def test_cpu_and_gpu_together(programs: tuple[Path, Path, Path], sanitizer: str, group: str) -> None:
    program, driver, openmp = programs
    if group == "faults" and sanitizer != "plain":
        group = "some faults"  # a script takes ten times as long
    done = run(str(program), str(openmp), group, MOERUN_LIBCUDA=str(driver))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout == "all good\n"
