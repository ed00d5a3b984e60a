"""What the partition search decides, on the device (oracle: methods/partition.py).

Each kernel adds up the gains that the programs of search.py left, [parts, candidates], in a fixed order, takes the
largest (the first among equals) and acts on it at once, so that no number travels to the host:

* `choose_columns`: the best c columns become salient. One program per matrix.
* `choose_split`: members below the best threshold go on to the next group. Every program adds the gains up again for
  its own rows: they are a few KB.
* `magnitudes` and `quantile_thresholds`: the candidate thresholds are quantiles of the members' |s|. The entries to be
  ranked are written out, a library sort orders them, one program per matrix interpolates between order statistics in
  float64, as the oracle does, to the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import CHOICE, column_tile
from .launch import launch
from .search import Gains
from .stack import Stack, own_rows


def choose_columns(gains: Gains, stack: Stack, rank: Tensor) -> Tensor:
    """gains: of c = 1, 2, ..; rank: int32 [L, k]. Returns salient, uint8 [L, k]."""
    matrices, parts, candidates = gains.parts.shape
    k = rank.shape[1]
    salient = torch.empty(matrices, k, dtype=torch.uint8, device=rank.device)
    launch(
        columns_kernel,
        (matrices,),
        *(gains.parts, stack.starts, rank, salient, k, parts, candidates),
        COLS=column_tile(k),
        PART_ROWS=gains.rows,
        CANDIDATES=triton.next_power_of_2(candidates),
        PARTS_AT_ONCE=CHOICE.parts_at_once,
        **CHOICE.options(k),
    )
    return salient


def choose_split(
    gains: Gains, stack: Stack, thresholds: Tensor, s: Tensor, salient: Tensor, group: Tensor, part: int, level: int
) -> None:
    """Members with |s| below the best threshold leave group `level` for the next; `group` is changed in place.

    Arguments as in search.split_gains, whose answer `gains` is.
    """
    k, (_, parts, candidates) = s.shape[1], gains.parts.shape
    launch(
        split_kernel,
        (stack.parts(CHOICE), len(stack)),
        *(gains.parts, stack.starts, thresholds, s, salient, group),
        *(k, parts, candidates, part, level),
        ROWS=CHOICE.rows,
        COLS=column_tile(k),
        PART_ROWS=gains.rows,
        CANDIDATES=triton.next_power_of_2(candidates),
        PARTS_AT_ONCE=CHOICE.parts_at_once,
        **CHOICE.options(k),
    )


def candidate_thresholds(
    s: Tensor, stack: Stack, salient: Tensor, group: Tensor, fractions: Tensor, part: int, level: int, nonzero: bool
) -> Tensor:
    """float32 [L, q]: the quantiles, fractions float64 [q], of the members' |s|; 0 where nothing is ranked.

    Ranked are the members that are not zero (`nonzero`), or all entries of the block with zeros for those outside.
    """
    k, matrices, tiles = s.shape[1], len(stack), stack.parts(CHOICE)
    ranked = torch.empty_like(s)
    counts = torch.empty(matrices, tiles, dtype=torch.int32, device=s.device)
    launch(
        magnitudes,
        (tiles, matrices),
        *(s, stack.starts, salient, group, ranked, counts, k, part, level),
        NONZERO=nonzero,
        ROWS=CHOICE.rows,
        COLS=column_tile(k),
        **CHOICE.options(k),
    )
    ordered, number = _ordered(ranked, stack), len(fractions)
    thresholds = torch.empty(matrices, number, dtype=torch.float32, device=s.device)
    launch(
        quantile_thresholds,
        (matrices,),
        *(ordered, stack.starts, counts, fractions, thresholds, k, tiles, number),
        TILE_ROWS=CHOICE.rows,
        NUMBER=triton.next_power_of_2(number),
        TILES_AT_ONCE=256,
        **CHOICE.options(k),
    )
    return thresholds


def _ordered(ranked: Tensor, stack: Stack) -> Tensor:
    """The entries [R, k] of every matrix in ascending order; the library sorts segments of one length at a time."""
    ordered, places = torch.empty_like(ranked), torch.empty_like(ranked, dtype=torch.int64)
    for rows, count in stack.runs():
        whole, *out = (t[rows].view(count, -1) for t in (ranked, ordered, places))
        torch.sort(whole, 1, out=tuple(out))
    return ordered


@triton.jit(do_not_specialize=["parts", "candidates"])
def columns_kernel(
    gains,  # float64 [L, parts, candidates]
    starts,  # which rows are whose: stack.py
    ranks,  # int32 [L, k]
    salient,  # uint8 [L, k]
    k,
    parts,
    candidates,
    COLS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
):
    matrix = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    own = tl.cdiv(own_rows(starts, matrix)[1], PART_ROWS)
    best = _best(gains + matrix * parts * candidates, own, candidates, CANDIDATES, PARTS_AT_ONCE)
    rank = tl.load(ranks + matrix * k + cols, mask=cols < k, other=0)
    tl.store(salient + matrix * k + cols, (rank <= best).to(tl.uint8), mask=cols < k)


@triton.jit(do_not_specialize=["parts", "candidates", "part", "level"])
def split_kernel(
    gains,  # float64 [L, parts, candidates]
    starts,  # which rows are whose: stack.py
    thresholds,  # float32 [L, candidates]
    sensitivity,  # float32 [R, k]
    salient,  # uint8 [L, k]
    group,  # uint8 [R, k]
    k,
    parts,
    candidates,
    part,
    level,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
):
    tile, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, n = own_rows(starts, matrix)
    if tile * ROWS >= n:
        return
    own = tl.cdiv(n, PART_ROWS)
    best = _best(gains + matrix * parts * candidates, own, candidates, CANDIDATES, PARTS_AT_ONCE)
    threshold = tl.load(thresholds + matrix * candidates + best)
    rows, cols = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    at = (start + rows).to(tl.int64)[:, None] * k + cols[None, :]
    members = _members(salient + matrix * k, group + at, rows < n, cols, k, part, level)
    low = members & (tl.abs(tl.load(sensitivity + at, mask=members, other=0.0)) < threshold)
    tl.store(group + at, tl.zeros([ROWS, COLS], tl.uint8) + (level + 1).to(tl.uint8), mask=low)


@triton.jit(do_not_specialize=["part", "level"])
def magnitudes(
    sensitivity,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    salient,  # uint8 [L, k]
    group,  # uint8 [R, k]
    ranked,  # float32 [R, k]: |s|; what does not count is infinite, or zero if the whole block counts
    counts,  # int32 [L, tiles]: entries that count
    k,
    part,
    level,
    NONZERO: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    tile, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, n = own_rows(starts, matrix)
    if tile * ROWS >= n:
        return
    rows, cols = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    at = (start + rows).to(tl.int64)[:, None] * k + cols[None, :]
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    members = _members(salient + matrix * k, group + at, rows < n, cols, k, part, level)
    size = tl.abs(tl.load(sensitivity + at, mask=members, other=0.0))
    count = tl.minimum(n - tile * ROWS, ROWS) * k
    if NONZERO:
        members &= size != 0
        size = tl.where(members, size, float("inf"))
        count = tl.sum(tl.sum(members.to(tl.int32), 1), 0)
    tl.store(ranked + at, size, mask=inside)
    tl.store(counts + matrix * tl.num_programs(0) + tile, count)


@triton.jit(do_not_specialize=["k", "tiles", "number"])
def quantile_thresholds(
    ordered,  # float32 [R, k], ascending in every matrix
    starts,  # which rows are whose: stack.py
    counts,  # int32 [L, tiles], of which a matrix has filled its own
    fractions,  # float64 [number]
    thresholds,  # float32 [L, number]
    k,
    tiles,
    number,
    TILE_ROWS: tl.constexpr,
    NUMBER: tl.constexpr,
    TILES_AT_ONCE: tl.constexpr,
):
    matrix = tl.program_id(0).to(tl.int64)
    start, n = own_rows(starts, matrix)
    own = tl.cdiv(n, TILE_ROWS)
    ordered += start.to(tl.int64) * k
    total = tl.zeros([TILES_AT_ONCE], tl.int32)
    for first in range(0, own, TILES_AT_ONCE):
        tile = first + tl.arange(0, TILES_AT_ONCE)
        total += tl.load(counts + matrix * tiles + tile, mask=tile < own, other=0)
    count = tl.sum(total, 0)
    q = tl.arange(0, NUMBER)
    real = q < tl.where(count > 0, number, 0)
    rank = tl.load(fractions + q, mask=q < number, other=0.0) * tl.maximum(count - 1, 0).to(tl.float64)
    low = rank.to(tl.int32)
    weight = rank - low.to(tl.float64)
    high = low + (weight > 0).to(tl.int32)
    a = tl.load(ordered + low, mask=real, other=0.0).to(tl.float64)
    b = tl.load(ordered + high, mask=real, other=0.0).to(tl.float64)
    value = tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))  # as torch.lerp rounds
    tl.store(thresholds + matrix * number + q, value.to(tl.float32), mask=q < number)


@triton.jit
def _best(gains, parts, candidates, CANDIDATES: tl.constexpr, PARTS_AT_ONCE: tl.constexpr):
    """The first candidate of largest total gain. gains: float64 [parts, candidates]."""
    candidate = tl.arange(0, CANDIDATES)
    total = tl.zeros([PARTS_AT_ONCE, CANDIDATES], tl.float64)
    for first in range(0, parts, PARTS_AT_ONCE):
        part = first + tl.arange(0, PARTS_AT_ONCE)
        real = (part < parts)[:, None] & (candidate < candidates)[None, :]
        total += tl.load(gains + part[:, None] * candidates + candidate[None, :], mask=real, other=0.0)
    gain = tl.where(candidate < candidates, tl.sum(total, 0), -float("inf"))
    return tl.argmax(gain, 0)


@triton.jit
def _members(salient, group, real_rows, cols, k, part, level):
    """Entries of group `level` in columns where `salient` is `part`."""
    inside = real_rows[:, None] & (cols < k)[None, :]
    inside &= (tl.load(salient + cols, mask=cols < k, other=255) == part)[None, :]
    return inside & (tl.load(group, mask=inside, other=255) == level)
