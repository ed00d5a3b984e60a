"""Judging group splits by the layer's outputs, for ARB-X (paper section 3.4; oracle: partition.split_by_output).

A candidate threshold cuts the members in two; each side is binarized around its mean; what is left of the block, R,
costs tr(R S R^T). The oracle forms R and R S for one candidate after the other. Here a program does it for a tile of
rows and a few candidates: mean and scale of both sides from the row in registers, then R S by `tl.dot` in chunks of
CHUNK columns of R, each recomputed from s and the four numbers of its row, so that R never leaves the registers.

Grid: (tiles of rows, chunks of candidates, matrices).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .configs import OUTPUT_SEARCH, column_tile
from .launch import launch
from .nearest import signed
from .search import Gains
from .stack import Stack, own_rows


def output_gains(
    s: Tensor,
    stack: Stack,
    salient: Tensor,
    group: Tensor,
    thresholds: Tensor,
    level: int,
    residual: Tensor,
    S: Tensor,
) -> Gains:
    """Minus tr(R S R^T) for every threshold, float32 [L, q].

    Members are the entries of group `level` in columns that are not salient. residual: float32 [R, k], contiguous, what
    is settled already, 0 on the members. S: float32 [L, k, k], contiguous.
    """
    k, config, candidates = s.shape[1], OUTPUT_SEARCH, thresholds.shape[1]
    gains = Gains.empty(stack, config, candidates)
    launch(
        output_gain_kernel,
        (stack.parts(config), -(-candidates // config.candidates), len(stack)),
        *(s, stack.starts, salient, group, thresholds, residual, S, gains.parts),
        *(k, candidates, level),
        ROWS=config.rows,
        COLS=column_tile(k),
        CHUNK=config.chunk_of(k),
        CANDIDATES=config.candidates,
        **config.options(k),
    )
    return gains


@triton.jit(do_not_specialize=["candidates", "level"])
def output_gain_kernel(
    sensitivity,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    salient,  # uint8 [L, k]
    group,  # uint8 [R, k]
    thresholds,  # float32 [L, candidates]
    residual,  # float32 [R, k]
    second_moment,  # float32 [L, k, k]
    gains,  # float64 [L, parts, candidates]
    k,
    candidates,
    level,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHUNK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    tile, matrix = tl.program_id(0), tl.program_id(2).to(tl.int64)
    start, n = own_rows(starts, matrix)
    if tile * ROWS >= n:
        return
    rows, cols = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    row_at = (start + rows).to(tl.int64)[:, None] * k
    sensitivity += row_at
    group += row_at
    residual += row_at
    salient += matrix * k
    s, members, settled = _load(sensitivity, salient, group, residual, rows, cols, n, k, level)
    first = tl.program_id(1) * CANDIDATES
    for candidate in range(first, tl.minimum(first + CANDIDATES, candidates)):
        threshold = tl.load(thresholds + matrix * candidates + candidate)
        high = members & (tl.abs(s) >= threshold)
        low = members & (high == 0)
        high_mean, high_scale = _level(s, high)
        low_mean, low_scale = _level(s, low)
        left = _left(s, members, settled, threshold, high_mean, high_scale, low_mean, low_scale)
        through = tl.zeros([ROWS, COLS], tl.float32)  # R S
        for chunk in range(0, k, CHUNK):
            own = chunk + tl.arange(0, CHUNK)
            s_own, members_own, settled_own = _load(sensitivity, salient, group, residual, rows, own, n, k, level)
            left_own = _left(s_own, members_own, settled_own, threshold, high_mean, high_scale, low_mean, low_scale)
            s_at = matrix * k * k + own[:, None] * k + cols[None, :]
            moment = tl.load(second_moment + s_at, mask=(own < k)[:, None] & (cols < k)[None, :], other=0.0)
            through = tl.dot(left_own, moment, through, input_precision="tf32x3")
        cost = tl.sum((through * left).to(tl.float64), 1)
        out = gains + (matrix * tl.num_programs(0) + tile) * candidates + candidate
        tl.store(out, -tl.sum(cost, 0))


@triton.jit
def _load(sensitivity, salient, group, residual, rows, cols, n, k, level):
    """(s, members, what is settled) in the given columns."""
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    members = inside & (tl.load(salient + cols, mask=cols < k, other=1) == 0)[None, :]
    members &= tl.load(group + cols[None, :], mask=members, other=255) == level
    s = tl.load(sensitivity + cols[None, :], mask=members, other=0.0)
    return s, members, tl.load(residual + cols[None, :], mask=inside, other=0.0)


@triton.jit
def _level(s, side):
    """Mean and mean absolute deviation of one side of every row."""
    count = tl.maximum(tl.sum(side.to(tl.float32), 1), 1.0)
    mean = tl.sum(tl.where(side, s, 0.0), 1) / count
    return mean, tl.sum(tl.where(side, tl.abs(s - mean[:, None]), 0.0), 1) / count


@triton.jit
def _left(s, members, settled, threshold, high_mean, high_scale, low_mean, low_scale):
    """The residual: members around the mean of their side, less its scale; the others as they are settled."""
    high = tl.abs(s) >= threshold
    centred = s - tl.where(high, high_mean[:, None], low_mean[:, None])
    scale = tl.where(high, high_scale[:, None], low_scale[:, None])
    return tl.where(members, centred - signed(centred >= 0, scale), settled)
