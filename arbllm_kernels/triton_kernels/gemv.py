"""y = x W^T for a few rows of x on tensor cores, no weight ever rebuilt (decode, batch 1 to 8; oracle: dequantize).

Inside a block W is a sum over zones: row scales times a matrix of signs, zero outside the zone, times column scales.
The matrix' entries are 0 and +-2, made of two bits: bit 30 of a float32 alone is 2.0, bit 31 its sign. A sign and a
group bit side by side, shifted to the top, are group 1's entry; with bit 30 flipped they are group 0's. That is a
shift and two logic operations per weight for both groups; column scales go to x, row scales to the sums.

Tensor cores cut float32 to tf32, 11 bits. Entries are exact there, and x times a column scale is split into two such
parts, two columns of B for every row of x: products are exact, sums float32. What is not finite in x makes its own row
of y NaN. Three passes over a piece of a block have the same form: the columns that are not salient, the salient ones,
and their second plane.

Grid: (tiles of rows, parts of the columns). A part is `per_part` spans, pieces of a block; `add_parts` adds the parts
up in a fixed order. In registers: entries [ROWS, 16] in the tensor cores' layout, sums [ROWS, N] per group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import gemv_config
from .launch import launch
from .parts import sum_parts
from .weight_tile import group_words, inverted, member_words, packed_kernel_args, words_at


def gemv(x: Tensor, *args: Any) -> Tensor:
    """arb::linear for x [batch, m], contiguous, of fp32, fp16 or bf16, batch 1 to 8: [batch, n] in x's dtype."""
    batch, (rows, cols, block) = x.shape[0], args[10][:3]
    config = gemv_config(batch)
    arguments, options, factor = packed_kernel_args(*args)
    spans = -(-block // config.span)
    whole = spans * -(-cols // block)
    parts, per_part = config.parts(rows, whole)
    sums = torch.empty(parts, batch, rows, dtype=torch.float32, device=x.device)
    y = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    launch(
        gemv_kernel,
        (-(-rows // config.rows), parts),
        *(*arguments, x, args[8], sums, batch, 0.5 * factor, spans, whole, per_part),
        SPAN=config.span,
        N=max(8, 2 * triton.next_power_of_2(batch)),
        ROWS=config.rows,
        **options,
        **config.options,
    )
    sum_parts(sums, y)
    return y


@triton.jit(do_not_specialize=["blocks", "batch", "spans", "whole", "per_part"])
def gemv_kernel(
    sign,
    group,
    second,
    row_scale,
    row_base,
    mean,
    col_scale,
    col_scale2,
    starts,
    n,
    m,
    block_size,
    blocks,
    words,
    second_words,
    x,  # [batch, m]
    order,  # int32 [m]: the column at each storage position
    sums,  # float32 [parts, batch, n]
    batch,
    factor: tl.float32,  # 2^exponent / 2
    spans,  # per block
    whole,  # spans in all
    per_part,
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGNED: tl.constexpr,
    SPAN: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
):
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(own, n - 1).to(tl.int64)  # past the end the last row is repeated, and not stored
    # As if loaded, though the mask never holds: Triton moves the decoding into the tensor cores' layout past loads, but
    # not past ranges, and would else take every entry through shared memory.
    shift = tl.load(starts + tl.arange(0, 16), mask=tl.arange(0, 16) + n < 0, other=30 - 2 * tl.arange(0, 16))
    shift = shift.to(tl.uint32)
    lane = tl.arange(0, N)
    x += (lane // 2).to(tl.int64)[None, :] * m
    x_real = (lane // 2 < batch)[None, :]
    part = (lane % 2)[None, :]
    all_salient = tl.load(starts + blocks - 1).to(tl.int64)
    total = tl.zeros([ROWS, N], tl.float32)
    last = tl.minimum((tl.program_id(1) + 1) * per_part, whole)
    for unit in range(tl.program_id(1) * per_part, last):
        block, start = unit // spans, unit % spans * SPAN
        begin = block * block_size
        before = tl.load(starts + block - 1, mask=block > 0, other=0)
        count = tl.load(starts + block) - before
        end = tl.minimum(tl.minimum(start + SPAN, block_size), m - begin)
        salient_end = tl.minimum(end, count)
        scales = row_scale + (rows * blocks + block) * (ORDER * SALIENT_GROUPS + GROUPS)
        means, columns, stride = mean, col_scale, 0 if SHARED else m
        if mean is not None:
            means += (rows * blocks + block) * (SALIENT_GROUPS + GROUPS)
        if col_scale is not None:
            columns += begin

        zones, plain = _zone_sums(
            *(sign + rows * words, begin, words, group, rows, begin, words, tl.maximum(start, count), end),
            *(x, order, x_real, columns, stride, part, shift),
            *(mean is not None, GROUPS, ALIGNED, ALIGNED, ROWS, N),
        )
        for g in tl.static_range(GROUPS):
            total += zones[g] * _row(scales + (ORDER * SALIENT_GROUPS + g))
            if mean is not None:
                total += plain[g] * _row(means + (SALIENT_GROUPS + g))
        zones, plain = _zone_sums(
            *(sign + rows * words, begin, words, group, rows, begin, words, start, salient_end),
            *(x, order, x_real, columns, stride, part, shift),
            *(mean is not None, SALIENT_GROUPS, ALIGNED, ALIGNED, ROWS, N),
        )
        for g in tl.static_range(SALIENT_GROUPS):
            total += zones[g] * _row(scales + ORDER * g)
            if mean is not None:
                total += plain[g] * _row(means + g)
        if ORDER == 2:
            if col_scale2 is not None:
                columns, stride = col_scale2 + before, all_salient
            zones, _ = _zone_sums(
                *(second, rows * all_salient + before, second_words, group, rows, begin, words, start, salient_end),
                *(x, order, x_real, columns, stride, part, shift),
                *(False, SALIENT_GROUPS, False, ALIGNED, ROWS, N),
            )
            for g in tl.static_range(SALIENT_GROUPS):
                total += zones[g] * _row(scales + (2 * g + 1))

    total *= factor
    if row_base is not None:
        total *= _row(row_base + rows)
    out = tl.sum(tl.reshape(total, [ROWS, N // 2, 2]), 2)
    x_row = tl.arange(0, N // 2)
    at = (tl.program_id(1) * batch + x_row).to(tl.int64)[None, :] * n + own[:, None]
    tl.store(sums + at, out, mask=(own < n)[:, None] & (x_row < batch)[None, :])


@triton.jit
def _zone_sums(
    signs,  # pointers to the lines of a plane,
    sign_begin,  # where the block begins in them, in bits,
    sign_words,  # and how long they are
    group,
    rows,
    begin,  # first column of the block
    words,
    low,  # columns low .. high - 1 of the block
    high,
    x,  # pointers, one per column of B
    order,
    x_real,
    columns,  # column scales of the block's group 0, or None
    stride,  # from group to group
    part,
    shift,
    MEANS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIGNS_ALIGNED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
):
    """For every group sum +-x c and, for means, sum x: tuples of float32 [ROWS, N], twice the value."""
    zones = (tl.zeros([ROWS, N], tl.float32),) * GROUPS
    plain = (tl.zeros([ROWS, N], tl.float32),) * GROUPS
    for first in range(low // 32 * 32, high, 32):
        sign = words_at(signs, sign_begin + first, sign_words, SIGNS_ALIGNED)
        members = group_words(group, rows, begin + first, words, GROUPS, ALIGNED)
        for odd in tl.static_range(2):
            place = first + odd + 2 * tl.arange(0, 16)
            real = (place >= low) & (place < high)
            column = tl.load(order + begin + place, mask=real, other=0)
            values = tl.load(x + column[:, None], mask=real[:, None] & x_real, other=0.0).to(tl.float32)
            for g in tl.static_range(GROUPS):
                w = _entries(sign, members, g, odd, shift, GROUPS)
                scaled = values
                if columns is not None:
                    scale = tl.load(columns + g * stride + place, mask=real, other=0.0).to(tl.float32)
                    scaled = values * scale[:, None]
                zones = _replaced(zones, g, _dot(w, scaled, part, zones[g]), GROUPS)
                if MEANS:
                    size = (w.to(tl.uint32, bitcast=True) & 0x40000000).to(tl.float32, bitcast=True)
                    plain = _replaced(plain, g, _dot(size, values, part, plain[g]), GROUPS)
    return zones, plain


@triton.jit
def _entries(signs, members, g: tl.constexpr, odd: tl.constexpr, shift, GROUPS: tl.constexpr):
    """float32 [R, 16]: +-2 where a weight is of group g, else +-0, for the even or the odd bits of the words.

    Minus (a plane's 0) and group bit come side by side: at bits j and j - 1 for odd j, one higher for even j.
    """
    member = tl.zeros_like(signs) - 1
    if GROUPS > 1:
        member = member_words(members, 1 if GROUPS == 2 else g, GROUPS)
    minus = inverted(signs)
    if odd:
        member = member >> 1
    else:
        minus = minus << 1
    pair = (minus & 0xAAAAAAAA) | (member & 0x55555555)
    entry = (pair[:, None] << shift[None, :]) & 0xC0000000
    if GROUPS == 2 and g == 0:
        entry ^= 0x40000000
    return entry.to(tl.float32, bitcast=True)


@triton.jit
def _row(scales):
    return tl.load(scales).to(tl.float32)[:, None]


@triton.jit
def _dot(w, b, part, sums):
    """sums + w b, where b's even lanes keep its upper 11 bits and the odd ones what is left."""
    upper = (b.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return tl.dot(w, tl.where(part == 0, upper, b - upper), sums, input_precision="tf32")


@triton.jit
def _replaced(zones, g: tl.constexpr, value, GROUPS: tl.constexpr):
    """The tuple with element g replaced."""
    found = ()
    for i in tl.static_range(GROUPS):
        found = found + ((value,) if i == g else (zones[i],))  # type: ignore[assignment]
    return found
