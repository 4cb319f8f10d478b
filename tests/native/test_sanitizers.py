"""The core under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Builds moe_forward_test.cc with only the files it needs, unoptimised enough to be quick, and runs it on a
fake OpenMP runtime (fake_openmp.cc) that the sanitizers see through.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from native_programs import SANITIZERS, build, run, skip_unless_sanitizer_works

SOURCES = {
    "cpu/ref/kernels.cc": ["-ffp-contract=off"],
    "cpu/ref/quantise.cc": ["-ffp-contract=off"],
    "cpu/avx2/kernels.cc": ["-mavx2", "-mfma", "-mf16c"],
    "cpu/avx2/quantise.cc": ["-mavx2", "-mfma", "-mf16c", "-ffp-contract=off"],
    "cpu/activations.cc": [],
    "cpu/cpu_info.cc": [],
    "cpu/grouping.cc": [],
    "cpu/moe_forward.cc": [],
    "cpu/node_split.cc": [],
    "cpu/team.cc": [],
    "cpu/topology.cc": [],
    "src/expert_store/blob_layout.cc": [],
    "src/expert_store/node_placement.cc": [],
    "cuda/device_info.cc": [],
    "cuda/driver_error.cc": [],
    "cuda/driver_table.cc": [],
    "cuda/handles.cc": [],
    "src/scheduler/job.cc": [],
    "src/scheduler/scheduler.cc": [],
    "src/scheduler/signals.cc": [],
    "src/scheduler/stream_order.cc": [],
    "tests/native/moe_forward_test.cc": [],
}


@pytest.fixture(scope="module", params=[name for name, flags in SANITIZERS.items() if flags])
def programs(request, tmp_path_factory) -> tuple[Path, Path]:
    """The test program, and the fake OpenMP runtime in a folder of its own."""
    flags = SANITIZERS[request.param]
    skip_unless_sanitizer_works(flags, tmp_path_factory.mktemp("sanitizer"))
    # GCC 12's ThreadSanitizer takes thread-local memory of a library that is loaded late for a huge range.
    late = ["-ftls-model=initial-exec"]
    openmp = build({"tests/native/fake_openmp.cc": late}, "libgomp_fake.so", flags, ["-shared"])
    return build(SOURCES, "moe_forward_test", flags), openmp


@pytest.mark.parametrize("most", [None, 2, 1])
def test_the_core_is_clean(programs: tuple[Path, Path], most: int | None) -> None:
    """Also when the runtime gives fewer threads than asked for."""
    limit = {} if most is None else {"FAKE_OPENMP_MOST": str(most)}
    program, openmp = programs
    done = run(str(program), str(openmp.parent), **limit)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    assert done.stdout == "all good\n"
