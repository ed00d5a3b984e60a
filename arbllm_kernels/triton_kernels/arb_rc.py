"""ARB-RC refinement, orders 1 and 2 (paper section 3.3, equations 12 and 13; oracle: methods/arb_rc.py).

Column scales couple all rows, row scales all columns. One *pass* does a row solve and the sums that the next column
solve needs, over one read of the weights; the launch boundary between two passes is the only barrier. Every program

1. finishes the column scales: adds up what all programs of the pass before left, in a fixed order, so that results do
   not depend on timing (no atomics). All programs repeat this small sum: it costs what the tail of a "last program
   adds up" scheme costs, and needs no counter and no fence;
2. solves the scales of its rows, exactly, given those columns;
3. leaves its part of the column sums of the new rows, numerator and denominator.

    order 1, T iterations    start | row, col | row, col | ...                        T + 2 passes
    order 2                  start 1 | start 2 | row 1, col 1 | row 2, col 2 | ...   2T + 3 passes

The odd passes of order 2 solve plane 2, the even ones plane 1 and, before it, the nearest of four levels. All zones of
a block, of both orders, and all matrices of a batch run in the same launches; zones of order 1 are done half way and
return at once. Fewer passes are not possible without changing the method: rows of plane 2 need finished columns of
plane 1.

Grid: (parts of the rows, zones, matrices). In registers: a tile [ROWS, COLS] of weights with its zone bytes, and two
[ROWS, COLS] accumulators of the column sums, folded over rows once at the end. Between passes live one byte of planes
per weight, the scales, and `parts` rows of sums per zone: all in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..methods.arb_rc import EPS
from .configs import ARB_RC, column_tile
from .launch import launch
from .nearest import nearest_of_four, signed
from .scales import Scales
from .stack import Stack, own_parts, own_rows


def refine_arb_rc(
    weight: Tensor, stack: Stack, zone: Tensor, zones: int, salient_zones: int, order: int, iters: int
) -> Scales:
    """Fit every zone of a stack of blocks.

    weight: float32 [R, k], zone: uint8 [R, k], values below `zones`, both contiguous; the first `salient_zones` of them
    are fitted with `order` planes, the others with one.
    """
    (rows, k), matrices, parts = weight.shape, len(stack), stack.parts(ARB_RC)
    cols = column_tile(k)
    planes = zone.new_zeros(zone.shape)
    row = weight.new_zeros(zones, 2, rows)
    col = weight.new_zeros(matrices, zones, 2, k)
    sums = weight.new_zeros(2, matrices, zones, parts, 2, cols)
    double_zones = salient_zones if order == 2 else 0
    passes = 2 * iters + 3 if double_zones else iters + 2
    for step in range(passes):
        launch(
            arb_rc_pass,
            (parts, zones, matrices),
            *(weight, stack.starts, zone, planes, row, col, sums),
            *(rows, k, step, iters, double_zones),
            EPS=EPS,
            ROWS=ARB_RC.rows,
            MAX_PARTS=ARB_RC.max_parts,
            COLS=cols,
            PARTS_AT_ONCE=ARB_RC.parts_at_once,
            **ARB_RC.options(k),
        )
    return Scales(planes, row, col=col)


@triton.jit(do_not_specialize=["total_rows", "step", "iters", "double_zones"])
def arb_rc_pass(
    weight,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    zone_of,  # uint8 [R, k]
    planes,  # uint8 [R, k]
    row_scale,  # float32 [Z, 2, R]
    col_scale,  # float32 [L, Z, 2, k]
    sums,  # float32 [2, L, Z, parts, 2, COLS]: written by even passes, by odd passes; numerator, denominator
    total_rows,  # R
    k,
    step,  # which pass this is, from 0
    iters,
    double_zones,  # the first zones have two planes
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    COLS: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
):
    part, zone, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    most, zones = tl.num_programs(0), tl.num_programs(1)
    two = zone < double_zones
    last = tl.where(two, 2 * iters + 2, iters + 1)
    if step > last:
        return
    start_row, n = own_rows(starts, matrix)
    parts, tiles = own_parts(n, ROWS, MAX_PARTS)
    if part >= parts:
        return
    start = (step == 0) | (two & (step == 1))
    second_turn = two & (step % 2 == 1)  # this pass solves plane 2 and finishes the columns of plane 1
    slot = matrix * zones + zone
    row_scale += zone.to(tl.int64) * 2 * total_rows
    col_scale += slot * 2 * k
    parity_stride = tl.num_programs(2).to(tl.int64) * zones * most * 2 * COLS
    sums += slot * most * 2 * COLS

    cols = tl.arange(0, COLS)
    real = cols < k
    col1 = tl.load(col_scale + cols, mask=real, other=0.0)
    col2 = tl.load(col_scale + k + cols, mask=real, other=0.0)
    if step > 0:
        mean_rule = (step == 1) | (two & (step == 2))
        before = sums + ((step + 1) % 2) * parity_stride
        fresh = _finish_columns(before, parts, mean_rule, EPS, COLS, PARTS_AT_ONCE)
        plane1 = second_turn | (two == 0)
        col1 = tl.where(plane1, fresh, col1)
        col2 = tl.where(plane1, col2, fresh)
        if part == 0:
            tl.store(col_scale + tl.where(plane1, 0, k) + cols, fresh, mask=real)

    col = tl.where(start, 1.0, tl.where(second_turn, col2, col1))
    numerator = tl.zeros([ROWS, COLS], tl.float32)
    denominator = tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < n)[:, None] & real[None, :]
        row_at = (start_row + rows).to(tl.int64)
        at = row_at[:, None] * k + cols[None, :]
        w = tl.load(weight + at, mask=inside, other=0.0)
        inside &= tl.load(zone_of + at, mask=inside, other=255) == zone
        row1 = tl.load(row_scale + row_at, mask=rows < n, other=0.0)
        row2 = tl.load(row_scale + total_rows + row_at, mask=rows < n, other=0.0)
        first = row1[:, None] * col1[None, :]
        second = row2[:, None] * col2[None, :]
        product = tl.abs(w)  # B * target of the plane to solve; its sign is its plane in every start
        if two:
            if step == 1:
                product = tl.abs(w - signed(w >= 0, first))
            elif second_turn:
                held = tl.load(planes + at, mask=inside, other=0)
                product = signed((held & 2) != 0, w - signed((held & 1) != 0, first))
            elif step > 0:
                if step == 2:
                    b1 = w >= 0
                    b2 = w - signed(b1, first) >= 0
                else:
                    b1, b2 = nearest_of_four(w, first, second)
                tl.store(planes + at, b1.to(tl.uint8) + 2 * b2.to(tl.uint8), mask=inside)
                product = signed(b1, w - signed(b2, second))
        elif step == last:
            tl.store(planes + at, (w >= 0).to(tl.uint8), mask=inside)
        product = tl.where(inside, product, 0.0)
        square = tl.sum(tl.where(inside, (col * col)[None, :], 0.0), 1)
        square = tl.where(start, tl.maximum(square, 1.0), square + EPS)
        row = tl.sum(product * col[None, :], 1) / square
        if step < last:
            tl.store(row_scale + tl.where(second_turn, total_rows, 0) + row_at, row, mask=rows < n)
        factor = tl.where(start, 1.0 / tl.where(row > 0, row, 1.0), row)  # an all-zero row has nothing to divide
        numerator += product * factor[:, None]
        denominator += tl.where(inside, tl.where(start, 1.0, row * row)[:, None], 0.0)

    after = sums + (step % 2) * parity_stride + part * 2 * COLS + cols
    tl.store(after, tl.sum(numerator, 0))
    tl.store(after + COLS, tl.sum(denominator, 0))


@triton.jit
def _finish_columns(sums, parts, mean_rule, EPS: tl.constexpr, COLS: tl.constexpr, PARTS_AT_ONCE: tl.constexpr):
    """Column scales [COLS] from the sums [parts, 2, COLS] of the pass before."""
    cols = tl.arange(0, COLS)
    numerator = tl.zeros([PARTS_AT_ONCE, COLS], tl.float32)
    denominator = tl.zeros([PARTS_AT_ONCE, COLS], tl.float32)
    for first in range(0, parts, PARTS_AT_ONCE):
        part = first + tl.arange(0, PARTS_AT_ONCE)
        at = part[:, None] * (2 * COLS) + cols[None, :]
        numerator += tl.load(sums + at, mask=(part < parts)[:, None], other=0.0)
        denominator += tl.load(sums + at + COLS, mask=(part < parts)[:, None], other=0.0)
    top, bottom = tl.sum(numerator, 0), tl.sum(denominator, 0)
    return top / tl.where(mean_rule, tl.maximum(bottom, 1.0), bottom + EPS)
