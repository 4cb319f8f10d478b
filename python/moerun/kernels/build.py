"""All kernels of a layer, compiled or from the cache: what the engine asks for when a layer is added."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence

from moerun.errors import KernelError
from moerun.kernels import cache
from moerun.kernels.compile import Binary, Job
from moerun.kernels.contract import Kernel, KernelShape, LayerKernels, Regime, description
from moerun.kernels.layout import Tile, layer_of
from moerun.kernels.tiles import RegimeTiles, check_architecture, combine_tile, regimes
from moerun.kernels.worker import compile_all

_OLDEST_TRITON = (3, 5)


def layer_kernels(shape: KernelShape, architecture: int, workers: int | None = None) -> LayerKernels:
    """Returns the kernels of layers of one shape, compiling those that the cache ($MOERUN_CACHE) lacks.

    Needs no GPU. Shows a bar on a terminal while it compiles, about a second a kernel and core.

    Parameters
    ----------
    shape
        What is compiled in.
    architecture
        The device's compute capability as 10 * major + minor.
    workers
        Processes that compile; by default as many as cores.

    Raises
    ------
    KernelError
        No triton, an unsupported architecture, or a kernel that does not compile.
    ValueError
        A shape that no kernel can address.
    """
    check_architecture(architecture)
    version = _triton_version()
    jobs = _jobs(shape, architecture)
    keys = [cache.key_of(job, version) for job in jobs]
    found = {key: binary for key in keys if (binary := cache.load(key)) is not None}
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
    compiled = dict(zip(missing, _compile(list(missing.values()), workers), strict=True))
    cache.save(compiled)
    found |= compiled
    return _assemble(shape, architecture, jobs, [found[key] for key in keys])


def described_kernels(shape: KernelShape, architecture: int) -> LayerKernels:
    """As layer_kernels, with descriptions as images, for a driver that emulates kernels. Compiles nothing."""
    jobs = _jobs(shape, architecture)
    images = [
        description(shape, job.function, job.tile.rows, job.tile.tokens, job.tile.split) for job in jobs
    ]
    binaries = [Binary(image, job.tile, 0, 0) for image, job in zip(images, jobs, strict=True)]
    return _assemble(shape, architecture, jobs, binaries)


def _compile(jobs: Sequence[Job], workers: int | None) -> list[Binary]:
    from tqdm import tqdm

    # disable=None: not where stderr is no terminal
    with tqdm(total=len(jobs), desc="GPU kernels", unit="kernel", disable=None, delay=0.5) as bar:
        return compile_all(jobs, bar.update, workers)


def _jobs(shape: KernelShape, architecture: int) -> list[Job]:
    """In the order in which _assemble takes them."""
    layer = layer_of(shape, architecture)
    tiles = [("moerun_combine", combine_tile(shape))]
    for regime in regimes(shape, architecture):
        tiles += _kernels_of(regime)
    return [Job(function, layer, tile, architecture) for function, tile in tiles]


def _kernels_of(regime: RegimeTiles) -> Iterator[tuple[str, Tile]]:
    yield "moerun_gate_up", regime.gate_up
    if regime.activate is not None:
        yield "moerun_activate", regime.activate
    yield "moerun_down", regime.down


def _assemble(
    shape: KernelShape, architecture: int, jobs: Sequence[Job], binaries: Sequence[Binary]
) -> LayerKernels:
    kernels = iter(
        Kernel(
            function=job.function,
            image=binary.cubin,
            num_warps=binary.tile.num_warps,
            shared_bytes=binary.shared_bytes,
            scratch_parameters=binary.scratch_parameters,
            tile_rows=binary.tile.rows,
            tile_tokens=binary.tile.tokens,
            split=binary.tile.split,
        )
        for job, binary in zip(jobs, binaries, strict=True)
    )
    combine = next(kernels)
    built = tuple(
        Regime(
            name=regime.name,
            tile_tokens=regime.gate_up.tokens,
            gate_up=next(kernels),
            activate=next(kernels) if regime.activate is not None else None,
            down=next(kernels),
        )
        for regime in regimes(shape, architecture)
    )
    return LayerKernels(shape, architecture, built, combine)


def _triton_version() -> str:
    needed = ".".join(map(str, _OLDEST_TRITON))
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as error:
        raise KernelError(
            f"the GPU kernels need triton, which is not installed: pip install 'triton>={needed}', "
            "or use device='cpu'"
        ) from error
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_TRITON:
        raise KernelError(
            f"the GPU kernels need triton >= {needed}; {version} is installed: pip install -U triton"
        )
    return version
