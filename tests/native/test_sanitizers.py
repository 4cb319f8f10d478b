"""The core under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Builds moe_forward_test.cc with only the files it needs, unoptimised enough to be quick, and runs it on a
fake OpenMP runtime (fake_openmp.cc) that the sanitizers see through.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import REPOSITORY, build, run, skip_unless_it_links

SOURCES = {
    "cpu/ref/kernels.cc": ["-ffp-contract=off"],
    "cpu/ref/quantise.cc": ["-ffp-contract=off"],
    "cpu/avx2/kernels.cc": ["-mavx2", "-mfma", "-mf16c"],
    "cpu/avx2/quantise.cc": ["-mavx2", "-mfma", "-mf16c", "-ffp-contract=off"],
    "cpu/activations.cc": [],
    "cpu/cpu_info.cc": [],
    "cpu/grouping.cc": [],
    "cpu/moe_forward.cc": [],
    "cpu/team.cc": [],
    "src/scheduler/scheduler.cc": [],
    "tests/native/moe_forward_test.cc": [],
}
SANITIZERS = {
    "address and undefined": "-fsanitize=address,undefined",
    "thread": "-fsanitize=thread",
}


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory) -> Path:
    """The test program, with the fake OpenMP runtime beside it."""
    folder = tmp_path_factory.mktemp("sanitized")
    flag = SANITIZERS[request.param]
    skip_unless_it_links(flag, folder)
    common = [
        "-std=c++20",
        "-O1",
        "-g1",
        "-fPIC",
        "-pthread",
        "-fno-sanitize-recover=all",
        flag,
        f"-I{REPOSITORY}",
    ]
    objects = []
    for number, (source, flags) in enumerate(SOURCES.items()):
        objects.append(str(folder / f"{number}.o"))
        build(*common, *flags, "-c", source, "-o", objects[-1])
    build(*common, *objects, "-ldl", "-o", str(folder / "moe_forward_test"))
    # GCC 12's ThreadSanitizer takes thread-local memory of a library that is loaded late for a huge range.
    late = ["-shared", "-ftls-model=initial-exec"]
    build(*common, *late, "tests/native/fake_openmp.cc", "-o", str(folder / "libgomp_fake.so"))
    return folder / "moe_forward_test"


@pytest.mark.parametrize("most", [None, 2, 1])
def test_the_core_is_clean(program: Path, most: int | None) -> None:
    """Also when the runtime gives fewer threads than asked for."""
    limit = {} if most is None else {"FAKE_OPENMP_MOST": str(most)}
    done = run(str(program), str(program.parent), **limit)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    assert done.stdout == "all good\n"
