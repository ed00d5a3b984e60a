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


def sensitivities(weight: Tensor, d: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """(s float32 [L, n, k], rank int32 [L, k]): rank 0 is the column of largest sum |s|, the first among equals.

    weight: float32 [L, n, k], last stride 1. d: float32 [L, k], last stride 1, the diagonal of U. `squared`: metric
    "hessian".
    """
    matrices, n, k = weight.shape
    parts, tiles = SENSITIVITY.parts(n)
    cols = column_tile(k)
    s = torch.empty(matrices, n, k, dtype=torch.float32, device=weight.device)
    sums = torch.empty(matrices, parts, cols, dtype=torch.float32, device=weight.device)
    rank = torch.empty(matrices, k, dtype=torch.int32, device=weight.device)
    launch(
        sensitivity_pass,
        (parts, matrices),
        *(weight, d, s, sums),
        *(n, k, weight.stride(0), weight.stride(1), d.stride(0), tiles),
        SQUARED=squared,
        ROWS=SENSITIVITY.rows,
        COLS=cols,
        **SENSITIVITY.options(k),
    )
    launch(rank_columns, (matrices,), sums, rank, k, parts, COLS=cols, CHUNK=16, **SENSITIVITY.options(k))
    return s, rank


@triton.jit(do_not_specialize=["tiles"])
def sensitivity_pass(
    weight,  # float32 [L, n, k], strides (matrix_stride, row_stride, 1)
    diagonal,  # float32 [L, k], strides (d_stride, 1)
    sensitivity,  # float32 [L, n, k]
    sums,  # float32 [L, parts, COLS]
    n,
    k,
    matrix_stride,
    row_stride,
    d_stride,
    tiles,
    SQUARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    part, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    d = tl.load(diagonal + matrix * d_stride + cols, mask=cols < k, other=1.0)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(tiles):
        rows = ((part * tiles + tile) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (rows < n)[:, None] & (cols < k)[None, :]
        at = matrix * matrix_stride + rows[:, None] * row_stride + cols[None, :]
        s = tl.load(weight + at, mask=inside, other=0.0)
        if SQUARED:
            s = tl.div_rn(s, tl.broadcast_to(d[None, :], [ROWS, COLS]))
            s = s * s
        tl.store(sensitivity + matrix * n * k + rows[:, None] * k + cols[None, :], s, mask=inside)
        total += tl.abs(s)
    tl.store(sums + (matrix * tl.num_programs(0) + part) * COLS + cols, tl.sum(total, 0))


@triton.jit(do_not_specialize=["parts"])
def rank_columns(sums, ranks, k, parts, COLS: tl.constexpr, CHUNK: tl.constexpr):
    """sums: float32 [L, parts, COLS] -> ranks: int32 [L, k]."""
    matrix = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    sums += matrix * parts * COLS
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
