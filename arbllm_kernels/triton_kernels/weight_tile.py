"""A tile of a packed weight, from bits and scales to float32 in registers; gemm.py, gemv.py and dequantize.py share it.

Tiles never straddle a block, so that the row scales of a tile are vectors over rows, one per zone, chosen by bit, and
column scales are vectors over columns. Bits are loaded as whole words, 32 weights at a time, and shifted into place
where a block or a row of the second plane does not begin at a word. The order of operations is docs/format.md's; where
nothing is fused the values have the bits of PackedWeight.dequantize.

The ops' arguments become kernel arguments once, in `packed_kernel_args`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def packed_kernel_args(tile_cols: int, *args: Any) -> tuple[list[Any], dict[str, Any], float]:
    """(arguments, constexpr options, 2^exponent) for every kernel, from those of the ops (ops.packed_args)."""
    *parts, _, counts, sizes = args
    sign, second = parts[0], parts[2]
    rows, cols, block, groups, salient_groups, order, exponent, shared = sizes
    blocks = -(-cols // block)
    starts = counts.cumsum(0, dtype=counts.dtype)
    arguments = [*parts, starts]
    arguments += [rows, cols, block, blocks, sign.shape[1], second.shape[0]]
    options = {"GROUPS": groups, "SALIENT_GROUPS": salient_groups, "ORDER": order, "SHARED": bool(shared)}
    return arguments, {**options, "COLS": tile_cols}, 2.0**exponent


@triton.jit
def weight_tile(
    sign,  # int32 [n, words]
    group,  # int32 [n, log2 GROUPS, words]
    second,  # int32 [second_words], a stream of n x C bits
    row_scale,  # [n, blocks, ORDER * SALIENT_GROUPS + GROUPS]
    row_base,  # [n] or None
    mean,  # [n, blocks, SALIENT_GROUPS + GROUPS] or None
    col_scale,  # [GROUPS, m], [1, m] if SHARED, or None
    col_scale2,  # [SALIENT_GROUPS, C] or None
    starts,  # int32 [blocks]: salient columns up to the end of each block
    n,
    m,
    block_size,
    blocks,
    words,
    second_words,
    rows,  # int32 [R]
    block,  # which block
    first,  # first column of the tile inside the block
    factor,  # power of two for row scales and means
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    COLS: tl.constexpr,
):
    """float32 [R, COLS] in storage order, 0 outside the block or the matrix."""
    rows = rows.to(tl.int64)
    real_rows = rows < n
    place = first + tl.arange(0, COLS)  # in the block
    at = block * block_size + place  # in the matrix
    real = (place < block_size) & (at < m)
    salient_before = tl.load(starts + block - 1, mask=block > 0, other=0)
    count = tl.load(starts + block) - salient_before
    salient = (place < count)[None, :]

    begin = block * block_size + first
    plus = _bits(sign, rows * words, begin + 0 * rows, words, real_rows, COLS)
    zone = tl.zeros_like(plus)  # the group that counts: 0 on salient columns that are a single zone
    if GROUPS > 1:
        planes: tl.constexpr = 2 if GROUPS == 4 else 1
        zone = _bits(group, rows * planes * words, begin + 0 * rows, words, real_rows, COLS)
        if GROUPS == 4:
            zone += 2 * _bits(group, (rows * 2 + 1) * words, begin + 0 * rows, words, real_rows, COLS)
        if SALIENT_GROUPS == 1:
            zone = tl.where(salient, 0, zone)

    unit = tl.zeros_like(rows).to(tl.float32) + factor
    if row_base is not None:
        unit = tl.load(row_base + rows, mask=real_rows, other=0.0).to(tl.float32) * factor
    scales = row_scale + (rows * blocks + block) * (ORDER * SALIENT_GROUPS + GROUPS)
    scale = tl.where(salient, _row(scales, 0, real_rows, unit), _row(scales, ORDER * SALIENT_GROUPS, real_rows, unit))
    for g in tl.static_range(1, GROUPS):
        other = _row(scales, ORDER * SALIENT_GROUPS + g, real_rows, unit)
        if SALIENT_GROUPS > 1:
            other = tl.where(salient, _row(scales, ORDER * g, real_rows, unit), other)
        scale = tl.where(zone == g, other, scale)
    if col_scale is not None:
        col = _col(col_scale + at, real)
        if SHARED:
            scale *= col
        else:
            cols = tl.where(zone >= 0, col, 0.0)
            for g in tl.static_range(1, GROUPS):
                cols = tl.where(zone == g, _col(col_scale + g * m + at, real), cols)
            scale *= cols
    value = tl.where(plus != 0, scale, -scale)

    if ORDER == 2:  # known when compiled, unlike the next line  # noqa: SIM102
        if first < count:  # most tiles have no salient column
            total = tl.load(starts + blocks - 1).to(tl.int64)
            scale = tl.where(salient, _row(scales, 1, real_rows, unit), 0.0)
            for g in tl.static_range(1, SALIENT_GROUPS):
                scale = tl.where(zone == g, _row(scales, 2 * g + 1, real_rows, unit), scale)
            if col_scale is not None:
                if SHARED:
                    scale *= _col(col_scale + at, real)
                else:
                    inner = place < count
                    cols = tl.where(zone >= 0, _col(col_scale2 + salient_before + place, inner), 0.0)
                    for g in tl.static_range(1, SALIENT_GROUPS):
                        cols = tl.where(zone == g, _col(col_scale2 + g * total + salient_before + place, inner), cols)
                    scale *= cols
            plus = _bits(second, 0 * rows, rows * total + salient_before + first, second_words, real_rows, COLS)
            value = tl.where(salient, value + tl.where(plus != 0, scale, -scale), value)
    if mean is not None:
        means = mean + (rows * blocks + block) * (SALIENT_GROUPS + GROUPS)
        unit = tl.zeros_like(unit) + factor
        shift = tl.where(salient, _row(means, 0, real_rows, unit), _row(means, SALIENT_GROUPS, real_rows, unit))
        for g in tl.static_range(1, GROUPS):
            other = _row(means, SALIENT_GROUPS + g, real_rows, unit)
            if SALIENT_GROUPS > 1:
                other = tl.where(salient, _row(means, g, real_rows, unit), other)
            shift = tl.where(zone == g, other, shift)
        value += shift
    return tl.where(real_rows[:, None] & real[None, :], value, 0.0)


@triton.jit
def _bits(plane, line, bit, limit, real_rows, COLS: tl.constexpr):
    """int32 [R, COLS], 0 or 1: COLS bits from bit `bit` [R] on, of the line of `limit` words that begins at `line`."""
    WORDS: tl.constexpr = COLS // 32
    bit = bit.to(tl.int64)
    word = (bit >> 5)[:, None] + tl.arange(0, WORDS)[None, :]
    shift = (bit & 31).to(tl.int32)[:, None]
    low = tl.load(plane + line[:, None] + word, mask=real_rows[:, None] & (word < limit), other=0)
    further = real_rows[:, None] & (word + 1 < limit) & (shift > 0)
    high = tl.load(plane + line[:, None] + word + 1, mask=further, other=0)
    # high << (32 - shift), which would be undefined for shift 0
    words = (low.to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)) | (
        (high.to(tl.uint32, bitcast=True) << (31 - shift).to(tl.uint32)) << 1
    )
    bits = (words[:, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1
    return tl.reshape(bits, [words.shape[0], COLS]).to(tl.int32)


@triton.jit
def _row(scales, index, real_rows, unit):
    """One scale of every row, float32 [R, 1]."""
    return (tl.load(scales + index, mask=real_rows, other=0).to(tl.float32) * unit)[:, None]


@triton.jit
def _col(scales, real):
    """One scale of every column, float32 [1, COLS]."""
    return tl.load(scales, mask=real, other=0.0).to(tl.float32)[None, :]
