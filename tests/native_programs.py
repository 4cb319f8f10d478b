"""Compiles C++ programs and libraries of the tests, plain and under sanitizers, and runs them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SANITIZERS = {
    "plain": [],
    "address and undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def compiler() -> list[str]:
    command = os.environ.get("CXX", "c++").split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no C++ compiler {command[0]!r}; set CXX")
    return command


def compile_with(*arguments: str) -> None:
    done = subprocess.run([*compiler(), *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def build(
    sources: Mapping[str, Sequence[str]], name: str, flags: Sequence[str] = (), link: Sequence[str] = ()
) -> Path:
    """Compiles each source (with flags of its own) and links them to a file called ``name``.

    Kept under build/tests, in a folder named by the contents of all sources and the flags.
    """
    command = ["-std=c++20", "-O1", "-g1", "-fPIC", "-pthread", *flags, f"-I{REPOSITORY}"]
    key = hashlib.sha256(repr([compiler(), command, link, sources]).encode())
    for file in sorted(
        f for top in ("src", "cpu", "cuda", "tests") for f in (REPOSITORY / top).rglob("*.[ch]*")
    ):
        if file.suffix in (".cc", ".h"):
            key.update(file.read_bytes())
    folder = REPOSITORY / "build/tests" / key.hexdigest()[:16]
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            objects = [f"{scratch}/{number}.o" for number in range(len(sources))]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                each = zip(sources.items(), objects, strict=True)
                jobs = [pool.submit(compile_with, *command, *own, "-c", s, "-o", o) for (s, own), o in each]
                for job in jobs:
                    job.result()
            compile_with(*command, *objects, *link, "-ldl", "-o", f"{scratch}/{name}")
            os.replace(f"{scratch}/{name}", folder / name)
    return folder / name


def all_in_one(sources: Sequence[str], name: str) -> str:
    """A source that includes all others: the standard library's headers are then compiled once."""
    path = REPOSITORY / "build/tests" / f"{name}.cc"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f'#include "{source}"\n' for source in sources)
    if not path.exists() or path.read_text() != text:  # another process may be reading it
        path.write_text(text)
    return str(path)


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


def skip_unless_sanitizer_works(flags: Sequence[str], folder: Path) -> None:
    if not flags:
        return
    (folder / "empty.cc").write_text("int main() {}")
    linked = run(*compiler(), *flags, str(folder / "empty.cc"), "-o", str(folder / "empty"))
    if linked.returncode != 0:
        pytest.skip(f"the compiler cannot link with {flags[0]}: {linked.stderr.strip().splitlines()[-1]}")
    started = run(str(folder / "empty"))
    if started.returncode != 0:
        pytest.skip(f"programs with {flags[0]} do not start here: {started.stderr.strip()[-200:]}")
