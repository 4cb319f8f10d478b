"""Builds the stand-in CUDA driver (tests/fakecuda) and talks to it: what is counted, what fails."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from native_programs import REPOSITORY, all_in_one, build

OWN_SOURCES = sorted(str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "tests/fakecuda").rglob("*.cc"))
SOURCES = [*OWN_SOURCES, "cuda/driver_error.cc", "src/expert_store/blob_layout.cc"]
# GCC 12's ThreadSanitizer takes thread-local memory of a library that is loaded late for a huge range.
FLAGS = ["-fvisibility=hidden", "-ftls-model=initial-exec"]


def build_fake_driver(flags: Sequence[str] = ()) -> Path:
    """The library; point MOERUN_LIBCUDA at it."""
    return build({all_in_one(SOURCES, "fakecuda"): FLAGS}, "libcuda.so.1", flags, ["-shared"])


def fake_driver_without(function: str, folder: Path) -> Path:
    """A copy of the library in ``folder`` that exports ``function`` under another name."""
    name, other = (f"\0{prefix}{function[2:]}\0".encode() for prefix in ("cu", "no"))
    library = build_fake_driver().read_bytes()
    assert name in library
    copy = folder / "libcuda.so.1"
    copy.write_bytes(library.replace(name, other))
    return copy


class FakeDriver:
    """The interface of tests/fakecuda/fakecuda.h in this process."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._c = ctypes.CDLL(str(library))
        self._c.fakecuda_calls.restype = ctypes.c_int64
        self._c.fakecuda_counter.restype = ctypes.c_int64
        self._c.fakecuda_leaks.restype = ctypes.c_int64
        self._c.fakecuda_violation.restype = ctypes.c_char_p
        self._c.fakecuda_failed.restype = ctypes.c_char_p
        self._c.fakecuda_violation.argtypes = [ctypes.c_int64]
        self._c.fakecuda_fail.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int]

    def fail(self, name: str, n: int, code: int) -> None:
        """The n-th call of ``name`` from now on returns ``code``."""
        self._c.fakecuda_fail(name.encode(), n, code)

    def failed(self) -> str | None:
        """The function that was made to fail last."""
        name = self._c.fakecuda_failed()
        return name.decode() if name else None

    def calls(self, name: str = "*") -> int:
        return self._c.fakecuda_calls(name.encode())

    def counter(self, name: str) -> int:
        value = self._c.fakecuda_counter(name.encode())
        assert value >= 0, f"the fake driver does not count {name}"
        return value

    def leaks(self) -> int:
        return self._c.fakecuda_leaks()

    def violations(self) -> list[str]:
        texts = (self._c.fakecuda_violation(i) for i in range(self.counter("violations")))
        return [text.decode() for text in texts]

    def reset(self) -> None:
        """Also reads the environment again."""
        self._c.fakecuda_reset()
