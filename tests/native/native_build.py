"""Builds and runs the native test programs of this folder, with sanitizers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


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


def skip_unless_it_links(flag: str, folder: Path) -> None:
    """Skips the test, saying why, if programs with this sanitizer cannot be made or do not start here."""
    (folder / "empty.cc").write_text("int main() {}")
    probe = [*compiler(), flag, str(folder / "empty.cc"), "-o", str(folder / "empty")]
    linked = run(*probe)
    if linked.returncode != 0:
        pytest.skip(f"the compiler cannot link with {flag}: {linked.stderr.strip().splitlines()[-1]}")
    started = run(str(folder / "empty"))
    if started.returncode != 0:
        pytest.skip(f"programs with {flag} do not start here: {started.stderr.strip()[-200:]}")
