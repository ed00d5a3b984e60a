"""Which columns are salient, and which weights form which group: the partition search (paper section 3.4; BiLLM).

The reference program runs the whole search on the sensitivity s (s = w^2 / d^2, or w): errors say how well s itself is
binarized. As written that is some 680 passes over the block. Here each row is sorted once; a threshold then cuts the
sorted row in two, and the row's mean, mean absolute deviation and squared error follow from prefix sums. The same
candidates, the same winner (tests/direct_search.py is the search as written). For ARB-X the candidates are judged by
tr(R S R^T), whose cross terms prefix sums cannot give; there only the scales come from them.

n = rows, k = columns of the block, q = candidates; every error is summed over rows. Sums are float64, because an error
is a small difference of large sums of squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import QuantConfig
from . import arb
from .binarize import Binarizer, Zone

ROWS_AT_ONCE = 256  # bounds the [rows, candidates, columns] tables of the column search to a few MB

Below = Callable[[Tensor], tuple[Tensor, Tensor]]  # x [n, q] -> members below x: (how many, their sum), each [n, q]


@dataclass(frozen=True, eq=False)
class Partition:
    """salient: bool [k]. group: int64 [n, k]; 0 holds the largest |s|, and a part without a split has only that."""

    salient: Tensor
    group: Tensor


def partition(weight: Tensor, d: Tensor, cfg: QuantConfig, S: Tensor | None = None) -> Partition:
    """Search the partition of one block. weight: [n, k]; d: [k], the diagonal of U; S: [k, k], for ARB-X only."""
    s = (weight / d).square() if cfg.metric == "hessian" else weight
    salient = salient_columns(s, cfg.max_salient)
    group = torch.zeros_like(s, dtype=torch.int64)
    columns = torch.nonzero(salient)[:, 0]
    part = s[:, columns]
    remaining = torch.ones_like(part, dtype=torch.bool)
    for _ in range(cfg.salient_groups - 1):
        nonzero = part.abs()[remaining & (part != 0)]
        remaining = remaining & ~split(part, remaining, quantiles(nonzero, cfg.thresholds), order=2)
        group[:, columns] += remaining
    residual = salient_residual(s, salient, group, cfg) if S is not None else None
    columns = torch.nonzero(~salient)[:, 0]
    part = s[:, columns]
    remaining = torch.ones_like(part, dtype=torch.bool)
    for _ in range(cfg.groups - 1):
        zeros = s.new_zeros(s.numel() - part.numel())  # the salient entries, which count in the quantiles as zeros
        thresholds = quantiles(torch.cat([(part.abs() * remaining).flatten(), zeros]), cfg.thresholds)
        if S is None or residual is None:
            high = split(part, remaining, thresholds, order=1)
        else:
            high, residual = split_by_output(part, columns, remaining, thresholds, residual, S)
        remaining = remaining & ~high
        group[:, columns] += remaining
    return Partition(salient, group)


def salient_columns(s: Tensor, limit: int) -> Tensor:
    """bool [k]: the c columns of largest sum |s|, c in 1 .. limit - 1 minimising the order-2 error of both parts."""
    k = s.shape[1]
    ranked = s.abs().sum(0).argsort(descending=True, stable=True)[:limit]
    counts = torch.arange(1, ranked.numel(), device=s.device)  # the candidates c
    chosen = torch.zeros(k, dtype=torch.bool, device=s.device)
    if counts.numel() == 0:
        return chosen
    gains = torch.zeros(counts.numel(), dtype=torch.float64, device=s.device)
    for rows in s.split(ROWS_AT_ONCE):
        every = _Prefix(rows, torch.ones_like(rows, dtype=torch.bool))
        top, order = rows[:, ranked].double().sort(1)
        members = (order[:, None, :] < counts[:, None]).double()  # [rows, c, sorted]: is it one of the top c columns
        table = running_sums(members, members * top[:, None, :])

        def salient_below(x: Tensor, top: Tensor = top, table: Tensor = table) -> tuple[Tensor, Tensor]:
            at = torch.searchsorted(top, x).expand(2, -1, -1)
            count, total = table.gather(3, at[..., None])[..., 0]
            return count, total

        count, total = table[0, :, :, -1], table[1, :, :, -1]
        gains += gain(salient_below, count, total, order=2)
        rest = _difference(every.below, salient_below)
        gains += gain(rest, k - count, every.total - total, order=2)
    chosen[ranked[: counts[gains.argmax()]]] = True
    return chosen


def split(s: Tensor, members: Tensor, thresholds: Tensor, order: int) -> Tensor:
    """bool [n, k]: the members with |s| >= t, for the threshold t that minimises the error of both sides."""
    high, low = _two_sides(_Prefix(s, members), thresholds)
    gains = gain(*high, order) + gain(*low, order)
    return members & (s.abs() >= thresholds[gains.argmax()])


def split_by_output(
    s: Tensor, columns: Tensor, members: Tensor, thresholds: Tensor, residual: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """ARB-X: like `split` at order 1, but minimising tr(R S R^T) of the whole block's residual R.

    s, members: [n, c], the given columns of the block. residual: [n, k], what is already settled, 0 on the members.
    Returns the high side, [n, c], and the residual with that side settled.
    """
    high, low = _two_sides(_Prefix(s, members), thresholds)
    levels = [tuple(t.to(s.dtype) for t in first_order(*side)) for side in (high, low)]
    settled, candidate = residual[:, columns], residual.clone()
    best, best_cost, best_own = members, float("inf"), settled
    for q, threshold in enumerate(thresholds):
        above = s.abs() >= threshold
        (high_mean, high_scale), (low_mean, low_scale) = ((m[:, q : q + 1], a[:, q : q + 1]) for m, a in levels)
        centred = s - torch.where(above, high_mean, low_mean)
        scale = torch.where(above, high_scale, low_scale)
        own = torch.where(members, centred - torch.copysign(scale, centred), settled)
        candidate[:, columns] = own
        cost = float(((candidate @ S) * candidate).sum(dtype=torch.float64))
        if cost < best_cost:
            best, best_cost, best_own = members & above, cost, own
    candidate[:, columns] = torch.where(best, best_own, settled)
    return best, candidate


def gain(below: Below, count: Tensor, total: Tensor, order: int) -> Tensor:
    """sum s^2 minus the error of residual binarization of a set, summed over rows: [q], to be maximised.

    Order 1 leaves sum s^2 - count * (mean^2 + scale^2). Order 2 subtracts count * (mean2^2 + scale2^2) more, for the
    residual r = s - mean -+ scale, whose sign around mean2 changes once on each side of the mean. count, total: [n, q].
    """
    mean, scale = first_order(below, count, total)
    result = count * (mean.square() + scale.square())
    if order == 2:
        low_count, low_sum = below(mean)
        high_count = count - low_count
        mean2 = scale * (low_count - high_count) / count.clamp(min=1)
        cut_low, cut_high = mean - scale + mean2, mean + scale + mean2
        low = _deviation(cut_low, low_count, low_sum, *below(torch.minimum(cut_low, mean)))
        c, t = below(torch.maximum(cut_high, mean))
        high = _deviation(cut_high, high_count, total - low_sum, c - low_count, t - low_sum)
        scale2 = (low + high) / count.clamp(min=1)
        result += count * (mean2.square() + scale2.square())
    return result.sum(0)


def first_order(below: Below, count: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean absolute deviation of a set, [n, q] each; 0 where it is empty."""
    mean = total / count.clamp(min=1)
    return mean, _deviation(mean, count, total, *below(mean)) / count.clamp(min=1)


def _deviation(x: Tensor, count: Tensor, total: Tensor, below_count: Tensor, below_sum: Tensor) -> Tensor:
    """sum |s - x| of a set of `count` entries, of which `below_count` lie below x."""
    return (total - below_sum) - x * (count - below_count) + x * below_count - below_sum


class _Prefix:
    """Sorted rows with running count and sum of the members: answers `below` for any x."""

    def __init__(self, s: Tensor, members: Tensor) -> None:
        self._values, order = s.double().sort(1)
        inside = members.gather(1, order).double()
        self._table = running_sums(inside, inside * self._values)
        self.count, self.total = self._table[0, :, -1:], self._table[1, :, -1:]

    def below(self, x: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(self._values, x.contiguous())
        count, total = self._table.gather(2, at.expand(2, -1, -1))
        return count, total


def running_sums(*values: Tensor) -> Tensor:
    """[..., k] each -> [len(values), ..., k + 1]: sums of the first 0 .. k entries."""
    first = values[0]
    table = first.new_zeros(len(values), *first.shape[:-1], first.shape[-1] + 1)
    for sums, value in zip(table, values, strict=True):
        torch.cumsum(value, -1, out=sums[..., 1:])
    return table


Side = tuple[Below, Tensor, Tensor]  # below, count [n, q], total [n, q]


def _two_sides(prefix: _Prefix, thresholds: Tensor) -> tuple[Side, Side]:
    """The members with |s| >= t and those with |s| < t, for every threshold. In a sorted row the latter are a range."""
    t = thresholds.double().expand(len(prefix.count), -1)
    start = torch.nextafter(-t, torch.zeros_like(t))  # s = -t belongs to the high side
    start_count, start_sum = prefix.below(start)
    end_count, end_sum = prefix.below(t)
    low_count, low_total = end_count - start_count, end_sum - start_sum

    def low_below(x: Tensor) -> tuple[Tensor, Tensor]:
        count, total = prefix.below(x.clamp(min=start, max=t))
        return count - start_count, total - start_sum

    high_below = _difference(prefix.below, low_below)
    high = (high_below, prefix.count - low_count, prefix.total - low_total)
    return high, (low_below, low_count, low_total)


def _difference(whole: Below, part: Below) -> Below:
    def below(x: Tensor) -> tuple[Tensor, Tensor]:
        (count, total), (less, less_total) = whole(x), part(x)
        return count - less, total - less_total

    return below


def quantiles(values: Tensor, number: int) -> Tensor:
    """`number` evenly spaced quantiles from 10 % to 90 % of a 1-D tensor, linearly interpolated; 0 if it is empty.

    torch.quantile does the same but refuses more than 16 million values.
    """
    if values.numel() == 0:
        return values.new_zeros(1)
    ranks = torch.linspace(0.1, 0.9, number, dtype=torch.float64, device=values.device) * (values.numel() - 1)
    ordered = values.sort().values.double()
    low = ranks.floor().long()
    high = ranks.ceil().long()
    return torch.lerp(ordered[low], ordered[high], ranks - low).to(values.dtype)


def salient_residual(
    s: Tensor, salient: Tensor, group: Tensor, cfg: QuantConfig, binarize: Binarizer = arb.binarize
) -> Tensor:
    """What ARB of order 2 leaves of s on the salient columns, 0 elsewhere."""
    columns = torch.nonzero(salient)[:, 0]
    part, zone = s.index_select(1, columns), group.index_select(1, columns)
    left = torch.zeros_like(part)
    for g in range(cfg.salient_groups if len(columns) else 0):
        mask = zone == g
        left += (part - binarize(Zone(part, mask), 2, cfg.iters).values()) * mask
    return torch.zeros_like(s).index_copy_(1, columns, left)
