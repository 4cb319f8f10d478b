"""Memory that ends right before, or begins right after, a page that nobody may touch: a read or write one
byte too far kills the process. Tests that use it run in a child process, so that the failure names the
case."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """`size` bytes between two forbidden pages; `at_end` says which of the two they touch."""

    def __init__(self, size: int, at_end: bool = True) -> None:
        page = mmap.PAGESIZE
        self._pages = (size + page - 1) // page
        self._map = mmap.mmap(-1, (self._pages + 2) * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._guards = (base, base + (self._pages + 1) * page)
        for guard in self._guards:
            self._protect(guard, PROT_NONE)
        begin = page + (self._pages * page - size if at_end else 0)
        self.address = base + begin
        self.array = np.frombuffer(self._map, np.uint8, count=size, offset=begin)

    def __del__(self) -> None:
        for guard in self._guards:
            self._protect(guard, mmap.PROT_READ | mmap.PROT_WRITE)

    @staticmethod
    def _protect(address: int, rights: int) -> None:
        if _libc.mprotect(address, mmap.PAGESIZE, rights) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")


def before_guard(data: np.ndarray) -> tuple[int, object]:
    """A placement (see expert_layers.py): the bytes end where the forbidden page begins."""
    memory = GuardedMemory(len(data))
    memory.array[:] = data
    return memory.address, memory


def after_guard(data: np.ndarray) -> tuple[int, object]:
    """A placement: the bytes begin where the forbidden page ends."""
    memory = GuardedMemory(len(data), at_end=False)
    memory.array[:] = data
    return memory.address, memory
