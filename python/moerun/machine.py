"""What this machine has left and what it can do: memory, and the measured limits of its processor.

Used by the command line and the benches. Memory is read from /proc and the control group, without the C++
core; limits are measured by it (cpu/measure.h).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Host memory in bytes, as far as this process may use it."""

    total_bytes: int
    available_bytes: int  # without swapping; file caches that can be dropped count as available


def memory(root: Path = Path("/")) -> Memory:
    """Memory of the machine, or of the control group (container) that this process is confined to.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are mounted.
    """
    fields = _read_fields(root / "proc/meminfo")
    total, available = fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024
    for limit_file, used_file, stat_file in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        group = root / "sys/fs/cgroup"
        limit = _read_text(group / limit_file)
        if not limit.isdigit() or int(limit) >= total:  # "max", or a number that limits nothing
            continue
        used = int(_read_text(group / used_file) or 0)
        droppable = _read_fields(group / stat_file).get("inactive_file", 0)
        available = min(available, int(limit) - used + droppable)
        total = int(limit)
    return Memory(total, max(0, available))


@dataclass(frozen=True)
class ProcessMemory:
    """Resident memory of this process in bytes; a mapped checkpoint's pages count while they are resident."""

    peak_bytes: int
    file_bytes: int  # of mapped files, at this moment; the system can drop them at any time


def process_memory() -> ProcessMemory:
    """Peak resident memory of this process so far, and how much of the present one is mapped files."""
    fields = _read_fields(Path("/proc/self/status"))
    return ProcessMemory(fields["VmHWM:"] * 1024, fields["RssFile:"] * 1024)


def measure_limits(threads: int, isa: str = "", seconds: float = 1.0, repeats: int = 9) -> dict[str, Any]:
    """Measure this machine's read bandwidth and dot-product peaks with our own loads and multiply-adds.

    Parameters
    ----------
    threads
        How many threads work at once.
    isa
        Row of the kernel table; empty means the one that an engine would use.
    seconds
        Time for each of the two to four measurements, all of its repeats together.
    repeats
        How often each is repeated; the measurements take turns.

    Returns
    -------
    dict
        ``threads``, ``buffer_bytes``, ``read_gb_per_s`` and ``dot_gflop_per_s`` by what is multiplied: fp32,
        and where the kernels can, bf16 and int8 (a multiply-add is two operations). Each figure is a dict of
        ``median``, ``best``, ``spread_percent`` (distance between the quartiles over the median) and
        ``repeats``.

    Raises
    ------
    ValueError
        An instruction set that this machine lacks, or arguments out of range.
    RuntimeError
        Not enough memory to measure, or more than one thread without an OpenMP runtime.
    """
    from moerun import _core

    buffer_bytes = read_buffer_bytes(_core.cpu_info()["l3_bytes"], memory().available_bytes, threads)
    return _core.measure_limits(threads, buffer_bytes, isa=isa, seconds=seconds, repeats=repeats)


def read_buffer_bytes(l3_bytes: int, available_bytes: int, threads: int) -> int:
    """Bytes to read when measuring bandwidth: far beyond the cache, but at most a quarter of what is free."""
    wanted = max(512 * MIB, 4 * l3_bytes)
    return max(min(wanted, available_bytes // 4), threads * MIB)


def _read_text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _read_fields(path: Path) -> dict[str, int]:
    """First number of every line "name number ...", by name."""
    lines = (line.split() for line in _read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
