"""The GPU kernels compile for every supported architecture, and fit it. Needs triton and ptxas, but no GPU.

Not every combination: each architecture compiles its share of a list, in which all formats and all kinds of
kernels take turns.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from expert_layers import ACTIVATIONS
from moerun import WEIGHT_FORMATS
from moerun.errors import KernelError
from moerun.kernels import worker
from moerun.kernels.compile import Job
from moerun.kernels.contract import KernelShape
from moerun.kernels.layout import Tile, layer_of
from moerun.kernels.tiles import SHARED_LIMIT, combine_tile, regimes

pytest.importorskip("triton")

WORKERS = 2
PER_ARCHITECTURE = 5
ELF_CUDA = 190  # e_machine


def kinds(shape: KernelShape, architecture: int) -> list[tuple[str, Tile]]:
    """All kernels of a layer."""
    found = [("moerun_combine", combine_tile(shape))]
    for regime in regimes(shape, architecture):
        found += [("moerun_gate_up", regime.gate_up), ("moerun_down", regime.down)]
        if regime.activate is not None:
            found.append(("moerun_activate", regime.activate))
    return found


def cover() -> Iterator[Job]:
    """PER_ARCHITECTURE kernels for each architecture."""
    for i, architecture in enumerate(SHARED_LIMIT):
        for j in range(PER_ARCHITECTURE):
            n = i * PER_ARCHITECTURE + j
            shape = KernelShape(
                hidden=(2048, 2880)[n % 2],
                inter=(768, 2880)[n % 2],
                top_k=8,
                weight_format=WEIGHT_FORMATS[n % len(WEIGHT_FORMATS)],
                x_dtype=("bf16", "fp16", "bf16", "bf16", "fp32")[n % 5],
                activation=ACTIVATIONS[n % len(ACTIVATIONS)],
                bias=n % 2 == 1,
            )
            found = kinds(shape, architecture)
            function, tile = found[(3 * n + i) % len(found)]
            yield Job(function, layer_of(shape, architecture), tile, architecture)


def test_all_architectures_compile() -> None:
    jobs = list(cover())
    assert {job.architecture for job in jobs} == set(SHARED_LIMIT)
    assert {job.layer.shape.weight_format for job in jobs} == set(WEIGHT_FORMATS)
    assert {job.function for job in jobs} >= {"moerun_gate_up", "moerun_down", "moerun_combine"}
    done: list[None] = []
    binaries = worker.compile_all(jobs, lambda: done.append(None), WORKERS)
    assert len(done) == len(jobs)
    for job, binary in zip(jobs, binaries, strict=True):
        assert binary.shared_bytes <= SHARED_LIMIT[job.architecture], job
        assert binary.scratch_parameters == 2, job  # of triton 3.5 to 3.9
        assert binary.tile.tokens == job.tile.tokens
        assert binary.cubin[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", binary.cubin, 18) == (ELF_CUDA,)
        assert job.function.encode() in binary.cubin


def test_a_tile_that_does_not_fit_is_made_smaller() -> None:
    """Shared memory: 4 stages of 64 KiB on a card with 99 KiB. Tensor memory: where Triton compiles a kernel
    that does nothing (seen with this tile on sm_100)."""
    shape = KernelShape(2048, 768, 8, "bf16", "bf16")
    shared = Job("moerun_down", layer_of(shape, 86), Tile(128, 64, 128, num_warps=8, num_stages=4), 86)
    shape = KernelShape(2048, 768, 8, "int4_g32", "bf16")
    tensor = Job("moerun_gate_up", layer_of(shape, 100), Tile(128, 128, 64, num_warps=8, num_stages=2), 100)
    first, second = worker.compile_all([shared, tensor], lambda: None, WORKERS)
    assert first.tile.num_stages < 4
    assert first.shared_bytes <= SHARED_LIMIT[86]
    assert second.tile.rows == 64
    assert len(second.cubin) > 10_000  # the one that does nothing has 5 KiB


def test_an_error_names_the_kernel_and_its_tile() -> None:
    shape = KernelShape(64, 64, 1, "int8", "bf16")
    job = Job("moerun_down", layer_of(shape, 90), Tile(rows=64, tokens=16, step=48), 90)
    with pytest.raises(KernelError) as raised:
        worker.compile_all([job], lambda: None, 1)
    message = str(raised.value)
    for part in (
        "moerun_down for sm_90",
        "int8 experts [64, 64]",
        "step=48",
        "does not compile",
        "power of 2",
    ):
        assert part in message


def test_a_process_that_ends_early_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_COMMAND", "import sys; print('out of luck', file=sys.stderr); sys.exit(3)")
    shape = KernelShape(64, 64, 1, "int8", "bf16")
    job = Job("moerun_combine", layer_of(shape, 90), combine_tile(shape), 90)
    with pytest.raises(KernelError, match=r"ended with status 3:\nout of luck"):
        worker.compile_all([job], lambda: None, 1)
