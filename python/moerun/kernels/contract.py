"""What the GPU kernels and those who launch them agree on: names, parameters, grids, and the lists that the
scheduler writes for every step. Plain values: imports no triton. The kernels are written by it, the C++
scheduler launches by it, the fake driver's emulators compute by it.

One layer, one step
-------------------
A *pair* is one (token, expert) of the routing. The GPU's pairs of a step are numbered 0 .. P-1, grouped by
expert; each has a row in `h` (activations between the projections). A *tile* is a piece of work of one
launch: at most `tile_tokens` neighbouring pairs of one expert. A launch covers a range of the step's tiles,
so experts that are resident go first and copied ones follow in launches of their own. Experts without pairs
have no tile and cost nothing.

    gate_up   h[p] = act(gate x[t]) * (up x[t])           grid (ceil(I / tile_rows), tiles, split)
    activate  only after a gate_up with split > 1: adds its partial sums, in order, and applies the activation
                                                          grid (ceil(I / tile_rows), tiles, 1)
    down      y[r] = weight[p] * (down h[p])              grid (ceil(H / tile_rows), tiles, split)
    combine   out[t] = sum of y[r] of the token's rows, in their order, + cpu[t]
                                                          grid (ceil(H / tile_rows), tokens, 1)

block = (32 * num_warps, 1, 1), dynamic shared memory = shared_bytes. No kernel adds with atomics: a result
depends on the lists alone, not on timing, and not on which launch did a pair.

Memory
------
x      [tokens, H] of x's dtype, contiguous, at a multiple of 16 bytes
slab   slot s begins at slab + s * layout.bytes and holds one blob (src/expert_store/blob_layout.h); 256-byte
       aligned. The offsets within a blob are compiled into the kernels.
h      [P, h_stride] of the compute dtype (`compute_dtype`); columns from I on are never read
partial[P, split, 2, h_stride] fp32: the gate's and the up's sums of a gate_up with split > 1
y      [rows, y_stride] fp32. A pair has `split` (of its down kernel) neighbouring rows.
out    [tokens, H] of x's dtype, contiguous
cpu    [tokens, H] fp32, contiguous: what the CPU computed; read if has_cpu != 0, else it may be null
All pointers are multiples of 16 bytes, but that of tiles. Nothing is read before it is written, so none of it
must be cleared.

Lists, written by the scheduler
-------------------------------
tiles        int32 [tiles][TILE_FIELDS], 4-byte aligned (a launch may begin at any tile):
               slot         of the expert
               first_pair   the tile's pairs are first_pair .. first_pair + pairs - 1
               pairs        0 .. tile_tokens; a tile with 0 does nothing (padding of a captured grid)
               inter_begin  the part of the intermediate dimension that the GPU computes: a multiple of
               inter_end    INTER_STEP, or I at the end. gate_up writes h only there, down sums only there and
                            adds the bias if inter_begin == 0, so parts add up to the whole. A part that
                            is empty must have no tile
               first_row    of y: pair first_pair + i has rows first_row + i * split .. + split - 1 (of down)
pair_token   int32 [P]: the pair's token, a row of x
pair_weight  fp32 [P]: the pair's routing weight
token_rows   int32 [tokens][top_k][2]: (first row of y, number of rows) of each of the token's pairs, in the
             order of its experts; number 0 where the GPU has no such pair (then first is ignored)
"""

from __future__ import annotations

from dataclasses import dataclass

TILE_FIELDS = ("slot", "first_pair", "pairs", "inter_begin", "inter_end", "first_row")
INTER_STEP = 128  # elements of I: the largest scale group, and the largest step of a kernel along K
MAX_TILES = 65535  # of a launch, and tokens of a combine: the driver's limit of the grid's second dimension

POINTER, INT32 = "pointer", "int32"
PARAMETER_BYTES = {POINTER: 8, INT32: 4}

# Function name in the module -> its parameters in order. After them come Triton's scratch pointers
# (Kernel.scratch_parameters of them), which are null.
PARAMETERS: dict[str, tuple[tuple[str, str], ...]] = {
    "moerun_gate_up": (
        ("x", POINTER),
        ("slab", POINTER),
        ("out", POINTER),  # h if split == 1, else partial
        ("tiles", POINTER),
        ("pair_token", POINTER),
    ),
    "moerun_activate": (
        ("partial", POINTER),
        ("slab", POINTER),
        ("h", POINTER),
        ("tiles", POINTER),
    ),
    "moerun_down": (
        ("h", POINTER),
        ("slab", POINTER),
        ("y", POINTER),
        ("tiles", POINTER),
        ("pair_weight", POINTER),
    ),
    "moerun_combine": (
        ("y", POINTER),
        ("token_rows", POINTER),
        ("cpu", POINTER),
        ("out", POINTER),
        ("has_cpu", INT32),
    ),
}


@dataclass(frozen=True)
class KernelShape:
    """What is compiled into a layer's kernels, besides tiles.

    ``weight_format`` and ``x_dtype`` are names of moerun.WEIGHT_FORMATS ("fp32", "fp16", "bf16" for x).
    """

    hidden: int
    inter: int
    top_k: int
    weight_format: str
    x_dtype: str
    activation: str = "silu"
    bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0

    @property
    def compute_dtype(self) -> str:
        """Of the operands of the matrix products and of h; sums are fp32. Quantised weights become x's dtype;
        unlike plain dtypes meet in fp32, which holds both."""
        if self.weight_format in ("fp32", "fp16", "bf16") and self.weight_format != self.x_dtype:
            return "fp32"
        return self.x_dtype

    @property
    def h_stride(self) -> int:
        """Elements from row to row of h."""
        return _round_up(self.inter, 64)

    @property
    def y_stride(self) -> int:
        """Elements from row to row of y."""
        return _round_up(self.hidden, 32)


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel, as plain values for the C++ launcher.

    ``image`` is a cubin for cuModuleLoadData, or, for a driver that emulates kernels, `description`.
    """

    function: str  # of the module: a key of PARAMETERS
    image: bytes
    num_warps: int
    shared_bytes: int
    scratch_parameters: int
    tile_rows: int  # rows of the result (of I, or of H) per program
    tile_tokens: int  # most pairs of a tile; 0 where there are no tiles (combine)
    split: int = 1  # programs that share one sum

    @property
    def parameter_bytes(self) -> tuple[int, ...]:
        """Size of each parameter in order, without the scratch pointers."""
        return tuple(PARAMETER_BYTES[kind] for _, kind in PARAMETERS[self.function])


@dataclass(frozen=True)
class Regime:
    """The kernels of launches of one kind. All tiles of a launch have at most ``tile_tokens`` pairs."""

    name: str
    tile_tokens: int
    gate_up: Kernel
    activate: Kernel | None  # if gate_up.split > 1
    down: Kernel


@dataclass(frozen=True)
class LayerKernels:
    """All kernels of layers of one shape.

    ``regimes`` come in ascending order of tile_tokens; of two with equal tile_tokens, the first has no split
    and the second splits sums among programs. For a launch take the first whose tile_tokens reach its
    largest number of pairs of one expert, else the last one, with several tiles an expert; then, if its
    gate_up's grid has fewer programs than the device has multiprocessors, the split one of the same
    tile_tokens, where there is one.
    """

    shape: KernelShape
    architecture: int  # 90 is sm_90
    regimes: tuple[Regime, ...]
    combine: Kernel


def description(shape: KernelShape, function: str, tile_rows: int, tile_tokens: int, split: int) -> bytes:
    """A kernel in words: ASCII lines "key value". The image that a driver receives which emulates kernels."""
    values = {
        "moerun_kernel": 1,
        "function": function,
        "format": shape.weight_format,
        "x": shape.x_dtype,
        "compute": shape.compute_dtype,
        "activation": shape.activation,
        "alpha": repr(shape.alpha),
        "limit": repr(shape.limit),
        "bias": int(shape.bias),
        "hidden": shape.hidden,
        "inter": shape.inter,
        "top_k": shape.top_k,
        "h_stride": shape.h_stride,
        "y_stride": shape.y_stride,
        "tile_rows": tile_rows,
        "tile_tokens": tile_tokens,
        "split": split,
    }
    return "".join(f"{key} {value}\n" for key, value in values.items()).encode("ascii")


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
