"""A tile of a packed weight, from bits and scales to float32 in registers; gemm.py and dequantize.py share it.

A tile is 32 columns of one block: one word of each plane per row. Its axes are (columns, rows), so that lanes are rows
and a lane owns the words and row scales of its row, loaded once, while column scales are the same for all lanes. Words
are shifted into place where a block or a row of the second plane does not begin at one. A tile stands for the salient
columns or for the others; where both kinds meet, callers ask for it twice and keep what they need. The order of
operations is docs/format.md's; where nothing is fused the values have the bits of PackedWeight.dequantize.

The ops' arguments become kernel arguments once, in `packed_kernel_args`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def packed_kernel_args(*args: Any) -> tuple[list[Any], dict[str, Any], float]:
    """(arguments, constexpr options, 2^exponent) for every kernel, from those of the ops (ops.packed_args)."""
    *parts, _, counts, sizes = args
    sign, second = parts[0], parts[2]
    rows, cols, block, groups, salient_groups, order, exponent, shared = sizes
    blocks = -(-cols // block)
    starts = counts.cumsum(0, dtype=counts.dtype)
    arguments = [*parts, starts]
    arguments += [rows, cols, block, blocks, sign.shape[1], second.shape[0]]
    options = {"GROUPS": groups, "SALIENT_GROUPS": salient_groups, "ORDER": order, "SHARED": bool(shared)}
    return arguments, {**options, "ALIGNED": block % 32 == 0 or blocks == 1}, 2.0**exponent


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
    rows,  # int [R]
    block,  # which block
    first,  # first column of the tile inside the block, a multiple of 32
    factor,  # power of two for row scales and means
    SALIENT: tl.constexpr,
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """float32 [32, R] in storage order; meaningless outside the block, in columns of the other kind, past the rows."""
    rows = tl.minimum(rows, n - 1).to(tl.int64)
    begin = block * block_size
    place = first + tl.arange(0, 32)  # in the block
    real = place < tl.minimum(block_size, m - begin)
    unit = tl.zeros_like(rows).to(tl.float32) + factor
    if row_base is not None:
        unit = tl.load(row_base + rows).to(tl.float32) * factor
    scales = row_scale + (rows * blocks + block) * (ORDER * SALIENT_GROUPS + GROUPS)
    means, columns = mean, col_scale
    if mean is not None:
        means += (rows * blocks + block) * (SALIENT_GROUPS + GROUPS)
    if col_scale is not None:
        columns += begin + place
    signs = words_at(sign + rows * words, begin + first, words, ALIGNED)
    if SALIENT:
        members = group_words(group, rows, begin + first, words, SALIENT_GROUPS, ALIGNED)
        value = _plane(signs, members, scales, ORDER, unit, columns, m, real, SHARED, SALIENT_GROUPS)
        if ORDER == 2:
            before = tl.load(starts + block - 1, mask=block > 0, other=0)
            total = tl.load(starts + blocks - 1).to(tl.int64)
            if not SHARED and col_scale is not None:
                columns = col_scale2 + before + place
                real = place < tl.load(starts + block) - before
            signs = words_at(second, rows * total + before + first, second_words, False)
            value += _plane(signs, members, scales + 1, 2, unit, columns, total, real, SHARED, SALIENT_GROUPS)
        if mean is not None:
            value += _chosen(members, means, 1, tl.zeros_like(unit) + factor, SALIENT_GROUPS)
    else:
        members = group_words(group, rows, begin + first, words, GROUPS, ALIGNED)
        scales += ORDER * SALIENT_GROUPS
        value = _plane(signs, members, scales, 1, unit, columns, m, real, SHARED, GROUPS)
        if mean is not None:
            value += _chosen(members, means + SALIENT_GROUPS, 1, tl.zeros_like(unit) + factor, GROUPS)
    return value


@triton.jit
def _plane(
    signs,
    members,
    scales,  # pointers to the row scales of group 0,
    step: tl.constexpr,  # and how far the next group's are
    unit,
    columns,  # pointers to the column scales of group 0, or None
    stride,
    real,
    SHARED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """What one plane adds to a tile."""
    scale = _chosen(members, scales, step, unit, GROUPS)
    if columns is not None:
        column = tl.load(columns, mask=real, other=0.0).to(tl.float32)[:, None]
        if not SHARED:
            for g in tl.static_range(1, GROUPS):
                own = tl.load(columns + g * stride, mask=real, other=0.0).to(tl.float32)[:, None]
                column = tl.where(_in_group(members, g, GROUPS), own, column)
        scale *= column
    return _signed(scale, signs)


@triton.jit
def _chosen(members, scales, step: tl.constexpr, unit, GROUPS: tl.constexpr):
    """The row scale or mean of every weight's group, float32 [32, R]."""
    scale = (tl.load(scales).to(tl.float32) * unit)[None, :] + tl.zeros([32, 1], tl.float32)
    for g in tl.static_range(1, GROUPS):
        own = (tl.load(scales + step * g).to(tl.float32) * unit)[None, :]
        scale = tl.where(_in_group(members, g, GROUPS), own, scale)
    return scale


@triton.jit
def words_at(line, bit, words, ALIGNED: tl.constexpr):
    """uint32 [R]: 32 bits from bit `bit` on of lines of `words` words that begin at the pointers `line`.

    `bit` is one number or one per row. ALIGNED: it is a multiple of 32. Bits past the end are meaningless.
    """
    word = bit >> 5
    low = tl.load(line + word).to(tl.uint32, bitcast=True)
    if not ALIGNED:
        high = tl.load(line + tl.minimum(word + 1, words - 1)).to(tl.uint32, bitcast=True)
        shift = (bit & 31).to(tl.uint32)
        # high << (32 - shift), which would be undefined for shift 0
        low = (low >> shift) | ((high << (31 - shift)) << 1)
    return low


@triton.jit
def group_words(group, rows, bit, words, GROUPS: tl.constexpr, ALIGNED: tl.constexpr):
    """The words of the group planes, uint32 [R], as a tuple: none, one or two."""
    if GROUPS == 1:
        return ()
    elif GROUPS == 2:
        return (words_at(group + rows * words, bit, words, ALIGNED),)
    else:
        line = group + rows * (2 * words)
        return (words_at(line, bit, words, ALIGNED), words_at(line + words, bit, words, ALIGNED))


@triton.jit
def inverted(words):
    """uint32; `~` fails on these in the interpreter of Triton 3.8."""
    return words ^ 0xFFFFFFFF


@triton.jit
def member_words(members, g: tl.constexpr, GROUPS: tl.constexpr):
    """uint32 [R]: the bits of group g, from what `group_words` gave for 2 or 4 groups."""
    if GROUPS == 2:
        return members[0] if g else inverted(members[0])
    else:
        low = members[0] if g % 2 else inverted(members[0])
        return low & (members[1] if g >= 2 else inverted(members[1]))


@triton.jit
def _in_group(members, g: tl.constexpr, GROUPS: tl.constexpr):
    """bool [32, R]: bit by bit, whether a weight is of group g."""
    bit = tl.full([32], 1, tl.uint32) << tl.arange(0, 32).to(tl.uint32)
    return (member_words(members, g, GROUPS)[None, :] & bit[:, None]) != 0


@triton.jit
def _signed(values, signs):
    """values [32, R], negated where the bit of signs [R] is 0."""
    minus = inverted(signs)[None, :] << (31 - tl.arange(0, 32)).to(tl.uint32)[:, None]
    return (values.to(tl.uint32, bitcast=True) ^ (minus & 0x80000000)).to(tl.float32, bitcast=True)
