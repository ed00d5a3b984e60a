"""Judging the candidates of the partition search (paper section 3.4; BiLLM; oracle: methods/partition.py).

Both searches ask the same question: a set of sensitivities is cut in two; how much do both sides gain when each is
binarized around its own mean in every row, once or twice over? Salient columns: the cut is "among the c columns of
largest sum |s|", c = 1, 2, ... Groups: the cut is |s| >= t, for every candidate t.

The oracle sorts each row and reads prefix sums. Here a row stays in registers and each candidate is evaluated as it is
written in the paper: mean, mean absolute deviation, the residual's mean and deviation, for both sides at once, since
an entry is on one side only. That is ten times the arithmetic of the sorted search, but no sum is a difference of
larger ones: float32 suffices inside a row, where prefix sums would need float64. Gains of rows are added in float64.

Grid: (tiles of rows, chunks of candidates, matrices). In registers: a tile [ROWS, COLS] of s, its members, one
candidate's sides. Every program leaves the gains of its candidates; choose.py adds them up and decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import SEARCH, RowConfig, column_tile
from .launch import launch
from .nearest import signed
from .stack import Stack, own_rows

COLUMNS, SPLIT = 0, 1  # what a candidate cuts by


@dataclass(frozen=True, eq=False)
class Gains:
    """What candidates gain: float64 [L, parts, candidates]. A part is `rows` rows; a matrix has as many as it needs."""

    parts: Tensor
    rows: int

    @classmethod
    def empty(cls, stack: Stack, config: RowConfig, candidates: int) -> Gains:
        shape = len(stack), stack.parts(config), candidates
        return cls(torch.empty(shape, dtype=torch.float64, device=stack.starts.device), config.rows)


def column_gains(s: Tensor, stack: Stack, rank: Tensor, candidates: int) -> Gains:
    """What cutting at the c = 1 .. candidates columns of lowest rank gains, two planes.

    s: float32 [R, k], contiguous. rank: int32 [L, k], 0 for the column of largest sum |s|.
    """
    return _gains(s, stack, rank, None, None, candidates, COLUMNS, 0, 0, order=2)


def split_gains(
    s: Tensor, stack: Stack, salient: Tensor, group: Tensor, thresholds: Tensor, part: int, level: int, order: int
) -> Gains:
    """What splitting the members at |s| >= t gains, for thresholds float32 [L, q].

    Members are the entries of group `level` in columns where `salient` is `part`. salient: uint8 [L, k]. group: uint8
    [R, k].
    """
    return _gains(s, stack, salient, group, thresholds, thresholds.shape[1], SPLIT, part, level, order)


def _gains(
    s: Tensor,
    stack: Stack,
    column: Tensor,
    group: Tensor | None,
    thresholds: Tensor | None,
    candidates: int,
    by: int,
    part: int,
    level: int,
    order: int,
) -> Gains:
    k, gains = s.shape[1], Gains.empty(stack, SEARCH, candidates)
    launch(
        candidate_gains,
        (stack.parts(SEARCH), -(-candidates // SEARCH.candidates), len(stack)),
        *(s, stack.starts, column, group, thresholds, gains.parts),
        *(k, candidates, part, level),
        BY=by,
        ORDER=order,
        ROWS=SEARCH.rows,
        COLS=column_tile(k),
        CANDIDATES=SEARCH.candidates,
        **SEARCH.options(k),
    )
    return gains


@triton.jit(do_not_specialize=["candidates", "part", "level"])
def candidate_gains(
    sensitivity,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    column,  # COLUMNS: int32 [L, k], ranks; SPLIT: uint8 [L, k], salient or not
    group,  # SPLIT: uint8 [R, k]
    thresholds,  # SPLIT: float32 [L, candidates]
    gains,  # float64 [L, parts, candidates]
    k,
    candidates,
    part,  # SPLIT: members are in columns with this value of `column`,
    level,  # and of this group
    BY: tl.constexpr,
    ORDER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    tile, matrix = tl.program_id(0), tl.program_id(2).to(tl.int64)
    start, n = own_rows(starts, matrix)
    if tile * ROWS >= n:
        return
    rows = tile * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    at = (start + rows).to(tl.int64)[:, None] * k + cols[None, :]
    real = (rows < n)[:, None]
    members = (rows >= 0)[:, None] & (cols < k)[None, :]  # a row that is not real is zero and gains nothing
    s = tl.load(sensitivity + at, mask=members & real, other=0.0)
    of_column = tl.load(column + matrix * k + cols, mask=cols < k, other=255).to(tl.int32)
    if BY == 1:
        members &= tl.load(group + at, mask=members & real, other=255) == level
        members &= (of_column == part)[None, :]
        s = tl.where(members, s, 0.0)
    size = tl.abs(s)
    first = tl.program_id(1) * CANDIDATES
    for candidate in range(first, tl.minimum(first + CANDIDATES, candidates)):
        if BY == 1:
            high = size >= tl.load(thresholds + matrix * candidates + candidate)
        else:
            high = (of_column <= candidate)[None, :] & (rows >= 0)[:, None]
        high &= members
        gain = _gain_of_both(s, high, members & (high == 0), ORDER)
        out = gains + (matrix * tl.num_programs(0) + tile) * candidates + candidate
        tl.store(out, tl.sum(gain, 0))


@triton.jit
def _gain_of_both(s, high, low, ORDER: tl.constexpr):
    """Per row: sum s^2 minus the error of binarizing the high and the low entries, each around its own mean.

    Order 1 leaves sum s^2 - count (mean^2 + scale^2); order 2 takes away as much again for the residual's mean, scale.
    """
    high_count = tl.sum(high.to(tl.int32), 1).to(tl.float32)
    low_count = tl.sum(low.to(tl.int32), 1).to(tl.float32)
    safe_high, safe_low = tl.maximum(high_count, 1.0), tl.maximum(low_count, 1.0)
    high_mean, low_mean = _sum(s, high) / safe_high, _sum(s, low) / safe_low
    rest = s - tl.where(high, high_mean[:, None], low_mean[:, None])
    size = tl.abs(rest)
    high_scale, low_scale = _sum(size, high) / safe_high, _sum(size, low) / safe_low
    gain = _gain(high_count, high_mean, high_scale) + _gain(low_count, low_mean, low_scale)
    if ORDER == 2:
        rest -= signed(rest >= 0, tl.where(high, high_scale[:, None], low_scale[:, None]))
        high_mean, low_mean = _sum(rest, high) / safe_high, _sum(rest, low) / safe_low
        size = tl.abs(rest - tl.where(high, high_mean[:, None], low_mean[:, None]))
        high_scale, low_scale = _sum(size, high) / safe_high, _sum(size, low) / safe_low
        gain += _gain(high_count, high_mean, high_scale) + _gain(low_count, low_mean, low_scale)
    return gain


@triton.jit
def _gain(count, mean, scale):
    """In float64: squares of sensitivities leave the range of float32."""
    wide, deviation = mean.to(tl.float64), scale.to(tl.float64)
    return count.to(tl.float64) * (wide * wide + deviation * deviation)


@triton.jit
def _sum(values, where):
    return tl.sum(tl.where(where, values, 0.0), 1)
