"""Sensitivities of a block and the rank of its columns (paper section 3.4; oracle: methods/partition.py).

s = (w / d)^2, or s = w. A pass over the weights writes s and leaves each program's share of the column sums of |s|;
one program per matrix then adds the shares up in a fixed order and ranks the columns by counting how many come before
each: no sort. Divisions are rounded as IEEE says and nothing is fused, so that s has the bits of the oracle's.

Grids: (parts of the rows, matrices) and (matrices,). In registers: a tile [ROWS, COLS]; COLS x CHUNK comparisons.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import SENSITIVITY, column_tile
from .launch import launch
from .stack import Stack, own_parts, own_rows


def sensitivities(weight: Tensor, stack: Stack, d: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """(s float32 [R, k], rank int32 [L, k]): rank 0 is the column of largest sum |s|, the first among equals.

    weight: float32 [R, k], contiguous. d: float32 [L, k], last stride 1, the diagonal of U. `squared`: metric
    "hessian".
    """
    k, matrices, parts = weight.shape[1], len(stack), stack.parts(SENSITIVITY)
    common = {"MAX_PARTS": SENSITIVITY.max_parts, "COLS": column_tile(k), **SENSITIVITY.options(k)}
    s = torch.empty_like(weight)
    sums = torch.empty(matrices, parts, column_tile(k), dtype=torch.float32, device=weight.device)
    rank = torch.empty(matrices, k, dtype=torch.int32, device=weight.device)
    launch(
        sensitivity_pass,
        (parts, matrices),
        *(weight, stack.starts, d, s, sums, k, d.stride(0)),
        SQUARED=squared,
        ROWS=SENSITIVITY.rows,
        **common,
    )
    given = (sums, stack.starts, rank, k, parts)
    launch(rank_columns, (matrices,), *given, TILE_ROWS=SENSITIVITY.rows, CHUNK=16, **common)
    return s, rank


@triton.jit
def sensitivity_pass(
    weight,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    diagonal,  # float32 [L, k], strides (d_stride, 1)
    sensitivity,  # float32 [R, k]
    sums,  # float32 [L, parts, COLS]
    k,
    d_stride,
    SQUARED: tl.constexpr,
    ROWS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    COLS: tl.constexpr,
):
    part, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, n = own_rows(starts, matrix)
    parts, tiles = own_parts(n, ROWS, MAX_PARTS)
    if part >= parts:
        return
    cols = tl.arange(0, COLS)
    d = tl.load(diagonal + matrix * d_stride + cols, mask=cols < k, other=1.0)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < n)[:, None] & (cols < k)[None, :]
        at = (start + rows).to(tl.int64)[:, None] * k + cols[None, :]
        s = tl.load(weight + at, mask=inside, other=0.0)
        if SQUARED:
            s = tl.div_rn(s, tl.broadcast_to(d[None, :], [ROWS, COLS]))
            s = s * s
        tl.store(sensitivity + at, s, mask=inside)
        total += tl.abs(s)
    tl.store(sums + (matrix * tl.num_programs(0) + part) * COLS + cols, tl.sum(total, 0))


@triton.jit(do_not_specialize=["parts"])
def rank_columns(
    sums,  # float32 [L, parts, COLS], of which a matrix has left its own parts
    starts,  # which rows are whose: stack.py
    ranks,  # int32 [L, k]
    k,
    parts,
    TILE_ROWS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    COLS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    matrix = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    sums += matrix * parts * COLS
    parts = own_parts(own_rows(starts, matrix)[1], TILE_ROWS, MAX_PARTS)[0]
    score = tl.zeros([COLS], tl.float32)
    for part in range(parts):
        score += tl.load(sums + part * COLS + cols)
    rank = tl.zeros([COLS], tl.int32)
    for first in range(0, k, CHUNK):
        other = first + tl.arange(0, CHUNK)
        rival = tl.zeros([CHUNK], tl.float32)
        for part in range(parts):
            rival += tl.load(sums + part * COLS + other)
        earlier = (other[:, None] < cols[None, :]) & (rival[:, None] == score[None, :])
        ahead = (rival[:, None] > score[None, :]) | earlier
        rank += tl.sum((ahead & (other < k)[:, None]).to(tl.int32), 0)
    tl.store(ranks + matrix * k + cols, rank, mask=cols < k)
