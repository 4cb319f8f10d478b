"""Which tiles a layer's kernels use, per architecture, weight format and number of tokens: values to print.

All of it is heuristic until measured on the architecture at hand (bench/gpu_suite.py prints what a choice
achieves). `python -m moerun.kernels.tiles` prints the table.

What the choices follow:

* 1 token an expert ("pair"): a product per weight, no tensor cores; many small programs, since one token of
  8 experts must fill all multiprocessors.
* Up to 16 ("few"): weights on the M side of the tensor cores, 64 rows of them, which is wgmma's M. Bound by
  memory: as many bytes in flight as shared memory holds. "few_split" divides each sum among 4 programs, for
  steps in which only a few experts run.
* Up to 64 ("some") and above ("many"): larger tiles, so that each weight that was loaded meets more tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moerun.errors import KernelError
from moerun.kernels.contract import INTER_STEP, KernelShape
from moerun.kernels.layout import Tile

# Architecture -> bytes of shared memory that a block may ask for: CUDA C++ Programming Guide, table
# "Technical specifications per compute capability", less the 1 KiB that the system keeps.
SHARED_LIMIT = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
# Columns of tensor memory of a multiprocessor (sm_100, PTX ISA on tcgen05.alloc). Triton compiles a kernel
# that needs more to one that does nothing.
TENSOR_MEMORY_LIMIT = 512
_SPLIT = 4
_SMALLEST_STEP = 32
_COMBINE_COLUMNS = 1024


@dataclass(frozen=True)
class RegimeTiles:
    """Tiles of the kernels of one regime; `activate` is None unless gate_up is split."""

    name: str
    gate_up: Tile
    activate: Tile | None
    down: Tile


def check_architecture(architecture: int) -> None:
    """Raises KernelError, naming what is supported, unless there are tiles for it."""
    if architecture not in SHARED_LIMIT:
        known = ", ".join(f"sm_{known}" for known in SHARED_LIMIT)
        raise KernelError(
            f"there are no GPU kernels for sm_{architecture}; supported: {known}. Use device='cpu'"
        )


def regimes(shape: KernelShape, architecture: int) -> tuple[RegimeTiles, ...]:
    """Returns the tiles that are tried first, in the order of LayerKernels.regimes.

    Raises
    ------
    KernelError
        An architecture without tiles.
    """
    check_architecture(architecture)
    wide = SHARED_LIMIT[architecture] > 100 * 1024
    # fp32 operands take twice the room
    half = 2 if shape.compute_dtype == "fp32" else 1

    def tiles(name: str, gate_up: Tile, down: Tile) -> RegimeTiles:
        activate = Tile(rows=128, tokens=gate_up.tokens, step=0, split=gate_up.split, num_stages=1)
        return RegimeTiles(
            name,
            replace(gate_up, step=_step(gate_up.step // half, shape.hidden)),
            activate if gate_up.split > 1 else None,
            replace(down, step=_step(down.step // half, shape.inter)),
        )

    pair = Tile(rows=16, tokens=1, step=256, num_warps=4, num_stages=4)
    pair_down = Tile(rows=32, tokens=1, step=INTER_STEP, num_warps=4, num_stages=4)
    few = Tile(rows=64, tokens=16, step=128, num_warps=4, num_stages=4 if wide else 2)
    some = Tile(rows=64, tokens=64, step=64, num_warps=4, num_stages=4 if wide else 3)
    some_down = Tile(rows=128, tokens=64, step=64, num_warps=4, num_stages=4 if wide else 3)
    many = Tile(rows=128, tokens=128, step=64, num_warps=8, num_stages=4 if wide else 3)
    small = (
        tiles("pair", pair, pair_down),
        tiles("few", few, few),
        tiles("few_split", replace(few, split=_SPLIT), replace(few, split=_SPLIT)),
        tiles("some", some, some_down),
    )
    return small if half == 2 else (*small, tiles("many", many, many))


def combine_tile(shape: KernelShape) -> Tile:
    """Columns of the output per program."""
    columns = 1 << (shape.hidden - 1).bit_length()
    return Tile(rows=min(columns, _COMBINE_COLUMNS), tokens=0, step=0, num_stages=1)


def smaller(tile: Tile, exceeded: str) -> Tile | None:
    """The next tile to try when one needs too much "shared memory" or "tensor memory"; None if there is none.

    The number of tokens stays, since the kernels of a regime share it.
    """
    if exceeded == "shared memory":
        if tile.num_stages > 2:
            return replace(tile, num_stages=tile.num_stages - 1)
        if tile.step > _SMALLEST_STEP:
            return replace(tile, step=tile.step // 2)
    return replace(tile, rows=tile.rows // 2) if tile.rows > 16 else None


def _step(wanted: int, columns: int) -> int:
    """The largest power of two up to `wanted` that divides the columns, so that nothing need be masked;
    `wanted` itself where that would be below 32."""
    dividing = columns & -columns
    return min(wanted, dividing) if dividing >= _SMALLEST_STEP else wanted


def main() -> None:
    """Prints the table."""
    print(f"{'arch':8}{'format':8}{'regime':12}{'kernel':9}rows tokens step split warps stages")
    for architecture in SHARED_LIMIT:
        for weight_format in ("bf16", "int8", "int4_g32"):
            shape = KernelShape(2048, 768, 8, weight_format, "bf16")
            for regime in regimes(shape, architecture):
                for kernel in ("gate_up", "activate", "down"):
                    tile = getattr(regime, kernel)
                    if tile is not None:
                        print(
                            f"sm_{architecture:<5}{weight_format:8}{regime.name:12}{kernel:9}{tile.rows:4}"
                            f"{tile.tokens:7}{tile.step:5}{tile.split:6}{tile.num_warps:6}{tile.num_stages:7}"
                        )


if __name__ == "__main__":
    main()
