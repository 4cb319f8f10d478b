"""Compiles one kernel to a cubin, for a GPU that need not be there. Runs in child processes (worker.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from moerun.errors import KernelError
from moerun.kernels.contract import INT32, PARAMETERS, POINTER
from moerun.kernels.layout import Layer, Tile
from moerun.kernels.tiles import SHARED_LIMIT, TENSOR_MEMORY_LIMIT, smaller

# Types of what the pointers point at, where they do not depend on the layer.
_ELEMENTS = {
    "slab": "u8",
    "tiles": "i32",
    "pair_token": "i32",
    "pair_weight": "fp32",
    "partial": "fp32",
    "y": "fp32",
    "token_rows": "i32",
    "cpu": "fp32",
}
_UNALIGNED = ("tiles",)  # a launch may begin at any tile; all others are multiples of 16 bytes
_SCRATCH_PARAMETERS = (0, 1, 2)  # of Triton up to 3.2, 3.4 and 3.9


@dataclass(frozen=True)
class Job:
    """A kernel to compile."""

    function: str
    layer: Layer
    tile: Tile
    architecture: int

    def __str__(self) -> str:
        shape = self.layer.shape
        return (
            f"{self.function} for sm_{self.architecture}, {shape.weight_format} experts [{shape.inter}, "
            f"{shape.hidden}], x in {shape.x_dtype}, {self.tile}"
        )


@dataclass(frozen=True)
class Binary:
    """A compiled kernel. `tile` is smaller than the job's where that did not fit."""

    cubin: bytes
    tile: Tile
    shared_bytes: int
    scratch_parameters: int


def compile_job(job: Job) -> Binary:
    """Compiles a kernel, with a smaller tile if the device cannot hold the job's.

    Raises
    ------
    KernelError
        It does not compile, or not even the smallest tile fits; the message names the kernel and its tile.
    """
    tile: Tile | None = job.tile
    while tile is not None:
        job = replace(job, tile=tile)
        try:
            compiled = _compile(job)
        except Exception as error:  # of the compiler: its exceptions have no common base
            raise KernelError(f"{job} does not compile: {_root(error)}\n{error}") from error
        exceeded = _exceeded(compiled.metadata, job.architecture)
        if exceeded is None:
            return Binary(compiled.asm["cubin"], tile, compiled.metadata.shared, _scratch(job, compiled))
        tile = smaller(tile, exceeded)
    raise KernelError(f"{job} needs more {exceeded} than the device has")


def parameter_types(job: Job) -> dict[str, str]:
    """Triton's type of each parameter, in the contract's order."""
    shape = job.layer.shape
    elements = _ELEMENTS | {"x": shape.x_dtype, "h": shape.compute_dtype, "out": shape.x_dtype}
    if job.function == "moerun_gate_up":
        elements["out"] = "fp32" if job.tile.split > 1 else shape.compute_dtype
    spelled = {POINTER: lambda name: f"*{elements[name]}", INT32: lambda name: "i32"}
    return {name: spelled[kind](name) for name, kind in PARAMETERS[job.function]}


def _compile(job: Job) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moerun.kernels import moe

    function = getattr(moe, job.function)
    types = parameter_types(job)
    names = list(types)
    constants = {"LAYER": job.layer, "TILE": job.tile}
    if function.arg_names != [*names, *constants]:
        raise KernelError(f"{job.function} takes {function.arg_names}, its contract says {names}")
    signature = types | dict.fromkeys(constants, "constexpr")
    values = {(len(names) + i,): value for i, value in enumerate(constants.values())}
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if types[name].startswith("*") and name not in _UNALIGNED
    }
    return triton.compile(
        ASTSource(function, signature, values, hints),
        target=GPUTarget("cuda", job.architecture, 32),
        options={"num_warps": job.tile.num_warps, "num_stages": job.tile.num_stages},
    )


def _root(error: BaseException) -> BaseException:
    """The first cause: Triton wraps an error once per function that it was compiling."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _exceeded(metadata: Any, architecture: int) -> str | None:
    """What the kernel needs more of than there is: Triton checks it when launching, not when compiling."""
    if metadata.shared > SHARED_LIMIT[architecture]:
        return "shared memory"
    if (getattr(metadata, "tmem_size", None) or 0) > TENSOR_MEMORY_LIMIT:
        return "tensor memory"
    return None


def _scratch(job: Job, compiled: Any) -> int:
    """The number of pointers that Triton appended to the parameters. They are null, so none may be used."""
    metadata = compiled.metadata
    for name in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, name, 0):
            raise KernelError(f"{job} wants {getattr(metadata, name)} bytes of {name}; moerun gives none")
    entry = re.search(rf"\.entry {job.function}\((.*?)\)\s*$", compiled.asm["ptx"], re.DOTALL | re.MULTILINE)
    found = 0 if entry is None else entry.group(1).count(".param")
    scratch = found - len(PARAMETERS[job.function])
    if scratch not in _SCRATCH_PARAMETERS:
        raise KernelError(f"{job} was compiled to {found} parameters, with an unknown kind among them")
    return scratch
