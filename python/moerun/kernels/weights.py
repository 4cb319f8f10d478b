"""Sums over weights of any format, in Triton: the one place that knows how a blob's bytes become numbers.

`add_product` adds one step along K of W x to an accumulator. MATRIX (layout.Matrix) says where the weights
lie and in which format. There are two ways of multiplying, chosen by the number of tokens:

* Several tokens: tensor cores. The weights are operand A (the M side), so that 16 tokens suffice for wgmma
  and weights that were unpacked in registers stay there. acc is [rows, tokens] fp32. Where the scale is the
  same for a whole step, codes are multiplied as they are (exact in 16 bits) and the sum is scaled; smaller
  groups scale the weights first, which rounds them to the compute dtype.
* One token: a product per weight on the ordinary units, all in fp32. acc is [rows, chunks] with a chunk of 16
  bytes of codes per column, so that a thread adds up what it has loaded; `row_sums` adds the columns.

Four-bit codes: a byte holds an even and an odd k. Instead of interleaving them, x is split into its even and
odd elements, and the two halves are multiplied one after the other.

Rows beyond the matrix are clamped to the last one, their sums are never stored. Columns beyond it count as 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _stored(blob, n, k, MATRIX: tl.constexpr, STEP: tl.constexpr):
    """What lies in the rows n, columns k .. k + STEP - 1: numbers [N, STEP], or bytes [N, STEP / parts]."""
    PARTS: tl.constexpr = MATRIX.parts
    offsets = tl.arange(0, STEP // PARTS)
    if MATRIX.plain:
        WIDTH: tl.constexpr = MATRIX.bits // 8
        base = (blob + MATRIX.codes).to(tl.pointer_type(MATRIX.element))
        ptr = base + (n * (MATRIX.row_bytes // WIDTH) + k)[:, None] + offsets[None, :]
    else:
        ptr = blob + MATRIX.codes + (n * MATRIX.row_bytes + k // PARTS)[:, None] + offsets[None, :]
    if MATRIX.columns % STEP == 0:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=(k + offsets * PARTS < MATRIX.columns)[None, :], other=0)


@triton.jit
def _scale_index(n, k, MATRIX: tl.constexpr, SPAN: tl.constexpr, COUNT: tl.constexpr):
    """Of the spans of SPAN columns that begin at k: indices into scales and zeros [N, COUNT], and a mask."""
    column = k + tl.arange(0, COUNT) * SPAN
    row = n // MATRIX.block_rows * MATRIX.scale_stride
    return row[:, None] + (column // MATRIX.group)[None, :], (column < MATRIX.columns)[None, :]


@triton.jit
def _scales(blob, n, k, MATRIX: tl.constexpr, SPAN: tl.constexpr, COUNT: tl.constexpr):
    """Scales of spans as fp32 [N, COUNT]; 0 beyond the matrix."""
    index, inside = _scale_index(n, k, MATRIX, SPAN, COUNT)
    base = blob + MATRIX.scales
    if MATRIX.format == "mxfp4":
        # 2^(s - 127): the exponent's bits of an fp32, whose 0 would be 0 and whose 255 infinity.
        s = tl.load(base + index, mask=inside, other=0).to(tl.int32)
        bits = tl.where(s == 0, 0x00400000, tl.where(s == 255, 0x7FC00000, s << 23))
        return bits.to(tl.float32, bitcast=True)
    elif MATRIX.format == "fp8_b128":
        return tl.load(base.to(tl.pointer_type(tl.float32)) + index, mask=inside, other=0.0)
    else:
        return tl.load(base.to(tl.pointer_type(tl.float16)) + index, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _nibble_values(
    nibbles, blob, n, k, MATRIX: tl.constexpr, SPAN: tl.constexpr, COUNT: tl.constexpr, TYPE: tl.constexpr
):
    """Four-bit codes [N, COUNT, SPAN / 2] as numbers of type TYPE, not yet scaled. Exact."""
    if MATRIX.format == "mxfp4":
        # e2m1's sign, exponent and fraction in fp16's places: 2^-14 of the value, subnormals included.
        code = nibbles.to(tl.int16)
        bits = ((code & 8) << 12) | ((code & 7) << 9)
        return (bits.to(tl.float16, bitcast=True) * 16384.0).to(TYPE)
    elif MATRIX.has_zeros:
        index, inside = _scale_index(n, k, MATRIX, SPAN, COUNT)
        zero = tl.load(blob + MATRIX.zeros + index, mask=inside, other=0)
        return (nibbles.to(tl.int8) - zero.to(tl.int8)[:, :, None]).to(TYPE)
    else:
        return (nibbles.to(tl.int8) - 8).to(TYPE)


@triton.jit
def _byte_values(codes, MATRIX: tl.constexpr, TYPE: tl.constexpr):
    """Eight-bit codes as numbers of type TYPE, not yet scaled. Exact."""
    if MATRIX.format == "fp8_b128":
        if MATRIX.hardware_fp8:
            return codes.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(TYPE)
        else:
            # e4m3 in the places of fp16: 2^-8 of the value, subnormals included; NaN (0x7f) kept.
            code = codes.to(tl.int16)
            bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
            value = bits.to(tl.float16, bitcast=True) * 256.0
            return tl.where((code & 0x7F) == 0x7F, float("nan"), value).to(TYPE)
    else:
        return codes.to(tl.int8, bitcast=True).to(TYPE)


@triton.jit
def load_x(x, rows, k, COLUMNS: tl.constexpr, MATRIX: tl.constexpr, TILE: tl.constexpr, TYPE: tl.constexpr):
    """Activations of columns k .. k + step - 1 for `add_product`, as (even, odd) or twice the same.

    x points at numbers of any dtype; rows [tokens] are offsets of its rows in elements. Several tokens:
    [step / parts, tokens] each. One token: fp32 [chunks, chunk / parts].
    """
    STEP: tl.constexpr = TILE.step
    PARTS: tl.constexpr = MATRIX.parts
    if TILE.tokens == 1:
        CHUNK: tl.constexpr = MATRIX.chunk
        chunks = tl.arange(0, STEP // CHUNK) * CHUNK
        column = k + chunks[:, None] + (tl.arange(0, CHUNK // PARTS) * PARTS)[None, :]
        row = x + tl.sum(rows, axis=0)
        even = tl.load(row + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        odd = even
        if PARTS == 2:
            odd = tl.load(row + column + 1, mask=column + 1 < COLUMNS, other=0.0).to(tl.float32)
        return even, odd
    else:
        TOKENS: tl.constexpr = TILE.tokens
        column = k + tl.arange(0, STEP)
        ptr = x + rows[:, None] + column[None, :]
        if COLUMNS % STEP == 0:
            tile = tl.load(ptr).to(TYPE)
        else:
            tile = tl.load(ptr, mask=(column < COLUMNS)[None, :], other=0.0).to(TYPE)
        if PARTS == 2:
            even, odd = tl.split(tl.reshape(tile, (TOKENS, STEP // 2, 2)))
            return tl.trans(even), tl.trans(odd)
        else:
            tile = tl.trans(tile)
            return tile, tile


@triton.jit
def zero_sums(MATRIX: tl.constexpr, TILE: tl.constexpr):
    """An accumulator for `add_product`."""
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.step // MATRIX.chunk if TILE.tokens == 1 else TILE.tokens
    return tl.zeros((ROWS, COLUMNS), dtype=tl.float32)


@triton.jit
def add_product(acc, even, odd, blob, n, k, MATRIX: tl.constexpr, TILE: tl.constexpr):
    """acc + W[n, k : k + step] x, with x from `load_x`. Scales of whole rows are left to `row_sums`."""
    if TILE.tokens == 1:
        return _add_chunks(acc, even, odd, blob, n, k, MATRIX, TILE)
    else:
        return _add_dots(acc, even, odd, blob, n, k, MATRIX, TILE)


@triton.jit
def _add_chunks(acc, even, odd, blob, n, k, MATRIX: tl.constexpr, TILE: tl.constexpr):
    PARTS: tl.constexpr = MATRIX.parts
    CHUNK: tl.constexpr = MATRIX.chunk
    STEP: tl.constexpr = TILE.step
    COUNT: tl.constexpr = STEP // CHUNK
    ROWS: tl.constexpr = TILE.rows
    stored = tl.reshape(_stored(blob, n, k, MATRIX, STEP), (ROWS, COUNT, CHUNK // PARTS))
    if MATRIX.plain:
        product = stored.to(tl.float32) * even[None, :, :]
    elif PARTS == 1:
        product = _byte_values(stored, MATRIX, tl.float32) * even[None, :, :]
    else:
        low = _nibble_values(stored & 15, blob, n, k, MATRIX, CHUNK, COUNT, tl.float32)
        high = _nibble_values(stored >> 4, blob, n, k, MATRIX, CHUNK, COUNT, tl.float32)
        product = low * even[None, :, :] + high * odd[None, :, :]
    sums = tl.sum(product, axis=2)
    if MATRIX.group:
        sums *= _scales(blob, n, k, MATRIX, CHUNK, COUNT)
    return acc + sums


@triton.jit
def _add_dots(acc, even, odd, blob, n, k, MATRIX: tl.constexpr, TILE: tl.constexpr):
    STEP: tl.constexpr = TILE.step
    PARTS: tl.constexpr = MATRIX.parts
    ROWS: tl.constexpr = TILE.rows
    stored = _stored(blob, n, k, MATRIX, STEP)
    if MATRIX.plain:
        return tl.dot(stored.to(even.dtype), even, acc, input_precision=MATRIX.precision)
    elif MATRIX.group == 0:
        return tl.dot(_byte_values(stored, MATRIX, even.dtype), even, acc, input_precision=MATRIX.precision)
    else:
        SPAN: tl.constexpr = min(MATRIX.group, STEP)
        COUNT: tl.constexpr = STEP // SPAN
        scale = _scales(blob, n, k, MATRIX, SPAN, COUNT)
        # Exact codes if one scale serves the step, else scaled weights
        if PARTS == 1:
            tl.static_assert(COUNT == 1, "a step of 8-bit codes must not exceed their group")
            sums = tl.dot(_byte_values(stored, MATRIX, even.dtype), even, input_precision=MATRIX.precision)
            return acc + sums * scale
        else:
            spans = tl.reshape(stored, (ROWS, COUNT, SPAN // 2))
            if COUNT == 1:
                low = _nibble_values(spans & 15, blob, n, k, MATRIX, SPAN, COUNT, even.dtype)
                high = _nibble_values(spans >> 4, blob, n, k, MATRIX, SPAN, COUNT, even.dtype)
            else:
                low = _nibble_values(spans & 15, blob, n, k, MATRIX, SPAN, COUNT, tl.float32)
                high = _nibble_values(spans >> 4, blob, n, k, MATRIX, SPAN, COUNT, tl.float32)
                low = (low * scale[:, :, None]).to(even.dtype)
                high = (high * scale[:, :, None]).to(even.dtype)
            low = tl.reshape(low, (ROWS, STEP // 2))
            high = tl.reshape(high, (ROWS, STEP // 2))
            if COUNT == 1:
                sums = tl.dot(low, even, input_precision=MATRIX.precision)
                sums = tl.dot(high, odd, sums, input_precision=MATRIX.precision)
                return acc + sums * scale
            else:
                acc = tl.dot(low, even, acc, input_precision=MATRIX.precision)
                return tl.dot(high, odd, acc, input_precision=MATRIX.precision)


@triton.jit
def row_sums(acc, blob, n, MATRIX: tl.constexpr, TILE: tl.constexpr):
    """The sums [rows, tokens] that the accumulator stands for."""
    if TILE.tokens == 1:
        acc = tl.sum(acc, axis=1)[:, None]
    if MATRIX.format == "int8":
        scale = tl.load((blob + MATRIX.scales).to(tl.pointer_type(tl.float32)) + n)
        acc *= scale[:, None]
    return acc
