"""The core under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Builds moe_forward_test.cc with only the files it needs, unoptimised enough to be quick, and runs it on a
fake OpenMP runtime (fake_openmp.cc) that the sanitizers see through.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
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


def compiler() -> list[str]:
    command = os.environ.get("CXX", "c++").split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no C++ compiler {command[0]!r}; set CXX")
    return command


def build(*arguments: str) -> None:
    done = subprocess.run([*compiler(), *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def without_address_randomisation() -> None:
    """For the child, before it starts: ThreadSanitizer needs address ranges that it may find taken."""
    addr_no_randomize = 0x0040000
    ctypes.CDLL(None).personality(ctypes.c_ulong(addr_no_randomize))


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"} | environment,
        preexec_fn=without_address_randomisation,
    )


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory) -> Path:
    """The test program, with the fake OpenMP runtime beside it."""
    folder = tmp_path_factory.mktemp("sanitized")
    flag = SANITIZERS[request.param]
    (folder / "empty.cc").write_text("int main() {}")
    probe = [*compiler(), flag, str(folder / "empty.cc"), "-o", str(folder / "empty")]
    linked = run(*probe)
    if linked.returncode != 0:
        pytest.skip(f"the compiler cannot link with {flag}: {linked.stderr.strip().splitlines()[-1]}")
    started = run(str(folder / "empty"))
    if started.returncode != 0:
        pytest.skip(f"programs with {flag} do not start here: {started.stderr.strip()[-200:]}")
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
