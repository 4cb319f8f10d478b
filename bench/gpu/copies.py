"""Copies between host and device: page-locked memory of torch's, and registered memory as a mapped file's."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.clock import seconds
from bench.gpu.section import Deadline
from bench.table import Column, Table, number

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20)
_MEMORIES = ("pinned", "registered")
_DIRECTIONS = ("H2D", "D2H")


@dataclass(frozen=True)
class CopyRow:
    memory: str  # one of _MEMORIES
    direction: str
    bytes: int
    gb_per_s: float
    copy_us: float


def measure(deadline: Deadline) -> Iterator[tuple[str, CopyRow]]:
    """The section "copies"."""
    device = torch.empty(SIZES[-1], dtype=torch.uint8, device="cuda")
    table = Table(
        "copies, one after the other on one stream",
        [
            Column("memory", 10, left=True),
            Column("way", 3, left=True),
            Column("KiB", 7),
            Column("GB/s", 6),
            Column("us a copy"),
        ],
    )
    for memory in _MEMORIES:
        with _host_memory(memory, SIZES[-1]) as host:
            for direction, size in itertools.product(_DIRECTIONS, SIZES):
                deadline.check(f"{memory} {direction} from {size >> 10} KiB on")
                row = _copy_row(memory, direction, host[:size], device[:size])
                table.row(memory, direction, str(size >> 10), number(row.gb_per_s), number(row.copy_us))
                yield "copies", row


def _copy_row(memory: str, direction: str, host: torch.Tensor, device: torch.Tensor) -> CopyRow:
    source, target = (host, device) if direction == "H2D" else (device, host)
    copy_s = seconds(lambda: target.copy_(source, non_blocking=True))
    return CopyRow(memory, direction, host.numel(), host.numel() / copy_s / 1e9, copy_s * 1e6)


@contextmanager
def _host_memory(memory: str, size: int) -> Iterator[torch.Tensor]:
    """uint8 [size] that the device reaches by itself."""
    if memory == "pinned":
        yield torch.ones(size, dtype=torch.uint8).pin_memory()
        return
    runtime: Any = torch.cuda.cudart()
    pages = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    pages.fill_(1)
    torch.cuda.check_error(runtime.cudaHostRegister(pages.data_ptr(), size, 0))
    try:
        yield pages
    finally:
        torch.cuda.synchronize()
        torch.cuda.check_error(runtime.cudaHostUnregister(pages.data_ptr()))
