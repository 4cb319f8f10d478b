"""The declarations that moerun keeps of the driver's ABI are those of NVIDIA's own header."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
CHECK = REPOSITORY / "tests/cuda/cuda_h_check.cc"


def toolkits() -> Iterator[Path]:
    """Folders that may hold cuda.h: of a toolkit, and the one that Triton brings along."""
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield Path(nvcc).resolve().parent.parent / "include"
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home:
            yield Path(home) / "include"
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        yield Path(triton.origin).parent / "backends/nvidia/include"


HEADERS = sorted({folder.resolve() for folder in toolkits() if (folder / "cuda.h").is_file()})


def compile_check(include: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX", "c++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no C++ compiler {compiler[0]!r}; set CXX")
    flags = ["-std=c++20", "-fsyntax-only", f"-I{repository}", "-isystem", str(include)]
    return subprocess.run([*compiler, *flags, str(CHECK)], capture_output=True, text=True)


@pytest.fixture(params=HEADERS or [None], ids=str)
def include(request) -> Path:
    if request.param is None:
        pytest.skip("no cuda.h: neither a CUDA toolkit nor Triton is installed")
    return request.param


def test_the_table_is_that_of_cuda_h(include: Path) -> None:
    done = compile_check(include, REPOSITORY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        (
            "driver_table.h",
            "cuMemAlloc_v2, Result(DevicePtr*, size_t)",
            "cuMemAlloc_v2, Result(DevicePtr*, int)",
        ),
        ("driver_types.h", "kNotReady = 600", "kNotReady = 601"),
    ],
)
def test_a_wrong_declaration_is_found(
    include: Path, tmp_path: Path, file: str, right: str, wrong: str
) -> None:
    shutil.copytree(REPOSITORY / "cuda", tmp_path / "cuda")
    text = (tmp_path / "cuda" / file).read_text()
    assert right in text
    (tmp_path / "cuda" / file).write_text(text.replace(right, wrong))
    done = compile_check(include, tmp_path)
    assert done.returncode != 0
    assert "static assertion failed" in done.stderr or "static_assert failed" in done.stderr
