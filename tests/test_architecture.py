"""The one direction in which things flow (docs/architecture.md), held by reading the sources."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCES = sorted(p for top in ("src", "cpu", "cuda", "python") for p in REPOSITORY.glob(f"{top}/**/*.[ch]*"))
SOURCES = [p.relative_to(REPOSITORY) for p in SOURCES if p.suffix in (".cc", ".h")]
OF_SRC_FOR_ALL = {"src/types.h", "src/error.h", "src/device.h"}
ROW = re.compile(r"\b(?:ref|avx2|avx_vnni|avx512|avx512_vnni|avx512_bf16|amx|amx_emulated)_kernels\b")


def includes(source: Path) -> list[str]:
    """Files of this repository that a source includes."""
    return re.findall(r'^\s*#include "([^"]+)"', (REPOSITORY / source).read_text(), flags=re.M)


def code(source: Path) -> str:
    """The source without comments and string literals."""
    text = (REPOSITORY / source).read_text()
    text = re.sub(r'R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"', '""', text)
    return re.sub(r"//[^\n]*|/\*(?:.|\n)*?\*/", "", text)


def under(*folders: str) -> list[Path]:
    return [s for s in SOURCES if any(s.is_relative_to(folder) for folder in folders)]


def test_there_is_something_to_read() -> None:
    assert {s.parts[0] for s in SOURCES} >= {"src", "cpu", "python"}
    assert len(SOURCES) > 30
    assert includes(Path("cpu/moe_forward.cc"))


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_includes_are_paths_from_the_root(source: Path) -> None:
    for name in includes(source):
        assert (REPOSITORY / name).is_file(), f"{source} includes {name}"


@pytest.mark.parametrize("source", under("cpu", "cuda"), ids=str)
def test_backends_know_only_the_shared_headers_of_src(source: Path) -> None:
    top = source.parts[0]
    for name in includes(source):
        assert name.startswith(f"{top}/") or name in OF_SRC_FOR_ALL, f"{source} includes {name}"


@pytest.mark.parametrize("source", under("src"), ids=str)
def test_the_core_does_not_know_python(source: Path) -> None:
    assert not [name for name in includes(source) if name.startswith("python/")]
    assert "pybind11" not in code(source)
    assert "Python.h" not in (REPOSITORY / source).read_text()


def test_the_policy_is_pure() -> None:
    for source in under("src/policy"):
        for name in includes(source):
            assert name.startswith("src/policy/") or name in {"src/types.h", "src/error.h"}, (
                f"{source}: {name}"
            )
        impure = (
            r"\b(chrono|thread|mutex|atomic|random_device|mt19937|getenv|ifstream|ofstream|iostream|rand)\b"
        )
        assert not re.search(impure, code(source)), source


@pytest.mark.parametrize("source", under("src/scheduler", "src/trace", "src/expert_store"), ids=str)
def test_nothing_below_the_engine_knows_it(source: Path) -> None:
    assert not [name for name in includes(source) if name.startswith("src/engine/")]


def test_only_dispatch_names_instruction_sets() -> None:
    """The table of kernels declares the rows, each row's own folder defines it, and rows extend
    one another."""
    allowed = {Path("cpu/kernel_table.h"), Path("cpu/dispatch.cc")}
    for source in SOURCES:
        if source in allowed or source.name == "kernels.cc":
            continue
        found = ROW.findall(code(source))
        assert not found, f"{source} names {found}; take the row that dispatch.cc has chosen"


@pytest.mark.parametrize("source", [s for s in SOURCES if s.name == "kernels.cc"], ids=str)
def test_files_with_instruction_set_flags_use_no_containers(source: Path) -> None:
    """A template of the standard library that is instantiated there could be linked into code for older
    machines."""
    if source.parent.name == "ref":
        return
    seen: set[str] = set()
    left = [str(source)]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += includes(Path(name))
    headers = {
        h for n in seen for h in re.findall(r"#include <([a-z_0-9/.]+)>", (REPOSITORY / n).read_text())
    }
    allowed = {"immintrin.h", "cstdint", "cstddef", "cstring", "cmath", "utility", "type_traits"}
    assert headers <= allowed, headers - allowed


@pytest.mark.parametrize("source", under("src", "cpu", "cuda"), ids=str)
def test_the_core_neither_ends_the_process_nor_prints(source: Path) -> None:
    text = code(source)
    ends = re.search(r"\b(abort|exit|_exit|quick_exit|terminate|assert)\s*\(", text)
    prints = re.search(r"\b(printf|fprintf|puts|perror)\s*\(|\bstd::(cout|cerr|clog)\b", text)
    assert not ends, f"{source}: {ends.group() if ends else ''}"
    assert not prints, f"{source}: {prints.group() if prints else ''}"


def test_no_path_of_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, so nobody knows which files belong to it")
    homes = re.compile(r"(?<![\w./])/(?:home|root|Users|work|workspace|mnt)/\w")
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if (
            path.suffix in (".safetensors", ".png")
            or not path.is_file()
            or path.name == "test_architecture.py"
        ):
            continue
        found = homes.search(path.read_text(errors="replace"))
        assert not found, f"{name} names {found.group() if found else ''}"
