"""The four kernels of a layer of experts (see contract.py, which says what they compute and are given).

Each program computes a tile: `TILE.rows` rows of a projection for up to `TILE.tokens` pairs of one expert.
Traffic is the weights, once per tile of tokens: the bound (HBM bandwidth) for few tokens an expert, where the
tensor cores are the bound for hundreds. The programs of one tile of tokens follow each other in the grid, so
that they share x in L2.

LAYER and TILE are layout.Layer and layout.Tile; everything in them is a constant in the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moerun.kernels.activation import gated
from moerun.kernels.weights import add_product, load_x, row_sums, zero_sums


@triton.jit
def _tile(tiles, index):
    """The six fields of a tile: contract.TILE_FIELDS."""
    at = tiles + index * 6
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def _steps(first, last, part, TILE: tl.constexpr):
    """Part `part` of TILE.split of the steps first .. last - 1; may be empty."""
    if TILE.split == 1:
        return first, last
    else:
        each = (last - first + TILE.split - 1) // TILE.split
        begin = first + part * each
        return begin, tl.minimum(begin + each, last)


@triton.jit
def _bias(blob, offset, n):
    return tl.load((blob + offset).to(tl.pointer_type(tl.float32)) + n)[:, None]


@triton.jit
def moerun_gate_up(x, slab, out, tiles, pair_token, LAYER: tl.constexpr, TILE: tl.constexpr):
    """h[p] = act(gate x[t] + gate_bias) * (up x[t] + up_bias); with a split, the two sums of this part."""
    INTER: tl.constexpr = LAYER.shape.inter
    HIDDEN: tl.constexpr = LAYER.shape.hidden
    H_STRIDE: tl.constexpr = LAYER.shape.h_stride
    SHAPE: tl.constexpr = LAYER.shape
    GATE: tl.constexpr = LAYER.gate
    UP: tl.constexpr = LAYER.up
    TYPE: tl.constexpr = LAYER.compute
    slot, first_pair, pairs, inter_begin, inter_end, _first_row = _tile(tiles, tl.program_id(1))
    first = tl.program_id(0) * TILE.rows
    if (pairs == 0) | (first >= inter_end) | (first + TILE.rows <= inter_begin):
        return
    blob = slab + slot.to(tl.int64) * LAYER.blob_bytes
    row = first + tl.arange(0, TILE.rows)
    n = tl.minimum(row, INTER - 1)
    token = tl.arange(0, TILE.tokens)
    pair = first_pair + tl.minimum(token, pairs - 1)
    x_rows = tl.load(pair_token + pair).to(tl.int64) * HIDDEN

    gate = zero_sums(GATE, TILE)
    up = zero_sums(UP, TILE)
    begin, end = _steps(0, (HIDDEN + TILE.step - 1) // TILE.step, tl.program_id(2), TILE)
    for step in range(begin, end):
        k = step * TILE.step
        even, odd = load_x(x, x_rows, k, HIDDEN, GATE, TILE, TYPE)
        gate = add_product(gate, even, odd, blob, n, k, GATE, TILE)
        up = add_product(up, even, odd, blob, n, k, UP, TILE)
    gate = row_sums(gate, blob, n, GATE, TILE)
    up = row_sums(up, blob, n, UP, TILE)

    inside = ((token < pairs)[:, None]) & ((row >= inter_begin) & (row < inter_end))[None, :]
    if TILE.split == 1:
        if LAYER.shape.bias:
            gate += _bias(blob, LAYER.gate_bias, n)
            up += _bias(blob, LAYER.up_bias, n)
        h = gated(gate, up, SHAPE)
        at = out + pair.to(tl.int64)[:, None] * H_STRIDE + row[None, :]
        tl.store(at, tl.trans(h).to(TYPE), mask=inside)
    else:
        part = (pair.to(tl.int64) * TILE.split + tl.program_id(2)) * 2
        at = out + part[:, None] * H_STRIDE + row[None, :]
        tl.store(at, tl.trans(gate), mask=inside)
        tl.store(at + H_STRIDE, tl.trans(up), mask=inside)


@triton.jit
def moerun_activate(partial, slab, h, tiles, LAYER: tl.constexpr, TILE: tl.constexpr):
    """What moerun_gate_up left to do when it was split: the sum of the parts, biases, the activation."""
    INTER: tl.constexpr = LAYER.shape.inter
    H_STRIDE: tl.constexpr = LAYER.shape.h_stride
    SHAPE: tl.constexpr = LAYER.shape
    ROWS: tl.constexpr = TILE.rows
    TOKENS: tl.constexpr = TILE.tokens
    slot, first_pair, pairs, inter_begin, inter_end, _first_row = _tile(tiles, tl.program_id(1))
    first = tl.program_id(0) * TILE.rows
    if (pairs == 0) | (first >= inter_end) | (first + TILE.rows <= inter_begin):
        return
    row = first + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    pair = (first_pair + tl.minimum(token, pairs - 1)).to(tl.int64)
    inside = ((token < pairs)[:, None]) & ((row >= inter_begin) & (row < inter_end))[None, :]
    gate = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    up = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for part in range(TILE.split):
        at = partial + ((pair * TILE.split + part) * 2)[:, None] * H_STRIDE + row[None, :]
        gate += tl.load(at, mask=inside, other=0.0)
        up += tl.load(at + H_STRIDE, mask=inside, other=0.0)
    if LAYER.shape.bias:
        blob = slab + slot.to(tl.int64) * LAYER.blob_bytes
        n = tl.minimum(row, INTER - 1)
        gate += tl.trans(_bias(blob, LAYER.gate_bias, n))
        up += tl.trans(_bias(blob, LAYER.up_bias, n))
    result = gated(gate, up, SHAPE)
    tl.store(h + pair[:, None] * H_STRIDE + row[None, :], result.to(LAYER.compute), mask=inside)


@triton.jit
def moerun_down(h, slab, y, tiles, pair_weight, LAYER: tl.constexpr, TILE: tl.constexpr):
    """y[r] = weight[p] * (down h[p] + down_bias) over the tile's part of I; with a split, parts of it."""
    INTER: tl.constexpr = LAYER.shape.inter
    HIDDEN: tl.constexpr = LAYER.shape.hidden
    DOWN: tl.constexpr = LAYER.down
    TYPE: tl.constexpr = LAYER.compute
    slot, first_pair, pairs, inter_begin, inter_end, first_row = _tile(tiles, tl.program_id(1))
    if pairs == 0:
        return
    blob = slab + slot.to(tl.int64) * LAYER.blob_bytes
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    n = tl.minimum(row, HIDDEN - 1)
    token = tl.arange(0, TILE.tokens)
    pair = first_pair + tl.minimum(token, pairs - 1)
    h_rows = pair.to(tl.int64) * LAYER.shape.h_stride

    acc = zero_sums(DOWN, TILE)
    last = (inter_end + TILE.step - 1) // TILE.step
    begin, end = _steps(inter_begin // TILE.step, last, tl.program_id(2), TILE)
    for step in range(begin, end):
        k = step * TILE.step
        even, odd = load_x(h, h_rows, k, INTER, DOWN, TILE, TYPE)
        acc = add_product(acc, even, odd, blob, n, k, DOWN, TILE)
    acc = row_sums(acc, blob, n, DOWN, TILE)
    if LAYER.shape.bias:
        once = (inter_begin == 0) & (tl.program_id(2) == 0)
        acc += tl.where(once, _bias(blob, LAYER.down_bias, n), 0.0)
    acc = tl.trans(acc) * tl.load(pair_weight + pair)[:, None]
    to = (first_row + (pair - first_pair) * TILE.split + tl.program_id(2)).to(tl.int64)
    inside = ((token < pairs)[:, None]) & (row < HIDDEN)[None, :]
    tl.store(y + to[:, None] * LAYER.shape.y_stride + row[None, :], acc, mask=inside)


@triton.jit
def moerun_combine(y, token_rows, cpu, out, has_cpu, LAYER: tl.constexpr, TILE: tl.constexpr):
    """out[t] = sum of the token's rows of y, in their order, + what the CPU computed."""
    HIDDEN: tl.constexpr = LAYER.shape.hidden
    TOP_K: tl.constexpr = LAYER.shape.top_k
    COLUMNS: tl.constexpr = TILE.rows
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < HIDDEN
    token = tl.program_id(1).to(tl.int64)
    acc = tl.zeros((COLUMNS,), dtype=tl.float32)
    for i in range(TOP_K):
        of_pair = token_rows + (token * TOP_K + i) * 2
        row = y + tl.load(of_pair).to(tl.int64) * LAYER.shape.y_stride + column
        for _ in range(tl.load(of_pair + 1)):
            acc += tl.load(row, mask=inside, other=0.0)
            row += LAYER.shape.y_stride
    if has_cpu != 0:
        acc += tl.load(cpu + token * HIDDEN + column, mask=inside, other=0.0)
    tl.store(out + token * HIDDEN + column, acc.to(out.dtype.element_ty), mask=inside)
