"""Driver and card, and what the card can do at most: copy and read its memory, multiply large matrices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.clock import seconds
from bench.gpu.section import Deadline
from bench.table import Column, Table

_BUFFER_BYTES = 4 << 30  # far beyond any second-level cache
_MATRIX = 8192
_QUERY = "driver_version,name,memory.total,clocks.max.sm,clocks.max.mem,pcie.link.gen.max,pcie.link.width.max"


@dataclass(frozen=True)
class CardLimits:
    """Of the same card, measured, not from its data sheet."""

    copy_gb_per_s: float  # bytes read and written
    read_gb_per_s: float
    matmul_tflop_per_s: float  # bf16, 8192 cubed, random numbers

    @property
    def memory_gb_per_s(self) -> float:
        """What a kernel can hope for."""
        return max(self.copy_gb_per_s, self.read_gb_per_s)


def measure(deadline: Deadline) -> Iterator[tuple[str, Any]]:
    """The section "card"."""
    card = describe()
    print("\n".join(f"{key:<20}{value}" for key, value in card.items()), flush=True)
    yield "card", card
    limits = card_limits()
    table = Table("what the card can do at most", [Column("what", 34, left=True), Column("measured", 12)])
    table.row("copy within its memory, GB/s", f"{limits.copy_gb_per_s:.0f}")
    table.row("read its memory, GB/s", f"{limits.read_gb_per_s:.0f}")
    table.row("bf16 product, TFLOP/s", f"{limits.matmul_tflop_per_s:.0f}")
    yield "limits", limits


def describe() -> dict[str, Any]:
    """The card as torch sees it, and what nvidia-smi says."""
    properties = torch.cuda.get_device_properties(0)
    card: dict[str, Any] = {
        "name": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "torch_cuda": torch.version.cuda,
    }
    try:
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
        values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(", ")
        card |= dict(zip(_QUERY.split(","), (value.strip() for value in values), strict=True))
    except (OSError, subprocess.CalledProcessError) as error:
        card["nvidia-smi"] = f"does not answer: {error}"
    return card


def card_limits() -> CardLimits:
    """Measures them; takes a second and 8 GiB of the card's memory."""
    copy_s, read_s = _memory_s()
    return CardLimits(
        copy_gb_per_s=2 * _BUFFER_BYTES / copy_s / 1e9,
        read_gb_per_s=_BUFFER_BYTES / read_s / 1e9,
        matmul_tflop_per_s=2 * _MATRIX**3 / _product_s() / 1e12,
    )


def _memory_s() -> tuple[float, float]:
    """Seconds to copy a large buffer, and to read it."""
    source = torch.ones(_BUFFER_BYTES // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source)), seconds(lambda: source.max())


def _product_s() -> float:
    a, b = (torch.randn(_MATRIX, _MATRIX, device="cuda").to(torch.bfloat16) for _ in range(2))
    return seconds(lambda: a @ b)
