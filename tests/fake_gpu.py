"""The stand-in CUDA driver of tests/fakecuda, built and controlled from Python."""

from __future__ import annotations

import ctypes
from pathlib import Path

from native_programs import REPOSITORY, build

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 0, 1, 2, 700  # CUresult


def build_fake_gpu(output: Path) -> Path:
    """Compiles the driver."""
    folder = REPOSITORY / "tests" / "fakecuda"
    names = [str(source.relative_to(REPOSITORY)) for source in sorted(folder.glob("**/*.cc"))]
    sources = dict.fromkeys([*names, "src/expert_store/blob_layout.cc"], ())
    return build(sources, output, ["-O2"], ["-shared"])


class FakeGpu:
    """What fakecuda.h offers to tests."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("calls", "counter", "leaks"):
            getattr(self._library, f"fakecuda_{name}").restype = ctypes.c_int64
        self._library.fakecuda_violation.restype = ctypes.c_char_p
        self._library.fakecuda_violation.argtypes = [ctypes.c_int64]
        self._library.fakecuda_fail.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int]

    def reset(self) -> None:
        """Forgets failures, counters and violations, and reads the environment again."""
        self._library.fakecuda_reset()

    def fail(self, name: str, n: int, code: int) -> None:
        """The n-th call of ``name`` from now on returns ``code``; "*" is any function, "kernel" a kernel."""
        self._library.fakecuda_fail(name.encode(), n, code)

    def calls(self, name: str = "*") -> int:
        """Calls so far."""
        return int(self._library.fakecuda_calls(name.encode()))

    def counter(self, name: str) -> int:
        """One of the counters of fakecuda.h."""
        return int(self._library.fakecuda_counter(name.encode()))

    def leaks(self) -> int:
        """Handles and pieces of memory that were not given back."""
        return int(self._library.fakecuda_leaks())

    def violations(self) -> list[str]:
        """What a program must not do but a real driver might not notice."""
        count = self.counter("violations")
        return [(self._library.fakecuda_violation(n) or b"").decode() for n in range(count)]
