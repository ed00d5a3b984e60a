"""Levels: the paper's storage with one scale per column, its codes found by feedback and coordinate descent.

A weight is c_j times one of the row's magnitudes with a sign: four magnitudes r1 +- r2 per row and block on salient
columns (two groups, two planes), two on the others. That is the format of ARB-RC + CGB with the column scales shared.
The objective is the layer's squared output error, tr((W - Q) H (W - Q)^T), and three steps lower it:

1. `fit`: alternating weighted least squares of column scales and row magnitudes, each weight at its nearest level; the
   row scales are then rounded to whole multiples of a base per row.
2. Feedback (GPTQ, Frantar et al. 2022): columns are coded one by one in order of falling activation energy, and each
   one's error moves the columns after it.
3. Refinement (coordinate descent, as in QuantEase, Behdin et al. 2023): each column in turn gets the scale and the
   codes that are best given all others. No step of it raises the objective.

Steps 2 and 3 are one routine, `sweep`, with other couplings. Matrices are transposed here, [columns, rows], and columns
stand in the order of the factor; k = columns, n = rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..block import Block
from ..config import QuantConfig
from ..errors import InputError
from ..packed import MAX_CODE, WORD
from .binarize import Solved
from .factor import Factor

SCALES = 6  # row scales per row and block: two planes of two salient groups, then two groups
PANEL = 64  # columns coded before their changes are passed on by one matrix product
MARGIN = 1.05  # room above the largest magnitude of the start: later blocks also carry the errors of earlier ones
REFIT_ITERS = 4  # of a block's fit once the errors before it have moved its weights
# magnitudes of the best 4 and 8 level quantizer of a normal variable of variance 1 (Lloyd, Max 1960), largest first
NORMAL = {2: (1.510, 0.4528), 4: (2.152, 1.344, 0.7560, 0.2451)}


@dataclass(frozen=True)
class Engine:
    """Who does the two inner loops: the functions below or csrc."""

    fit: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    sweep: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(eq=False)
class Coded:
    """A matrix under work. Columns in the order of the factor.

    value: [m, n], what the codes mean. code: uint8 [m, n], index of the magnitude, plus 4 where the weight is positive.
    col: [m], column scales in storage precision. salient: bool [m]. base: [n]. units: uint8 [blocks, 6, n], row scales.
    """

    value: Tensor
    code: Tensor
    col: Tensor
    salient: Tensor
    base: Tensor
    units: Tensor

    def row_scale(self, block: int) -> Tensor:
        """float32 [6, n]"""
        return self.units[block].float() * self.base


def block_size(cols: int, wanted: int) -> int:
    """Columns per block: whole words, and as many blocks of equal width as come nearest to the wanted size."""
    blocks = max(1, round(cols / wanted))
    return -(-cols // (blocks * WORD)) * WORD


def salient_count(rows: int, cols: int, size: int, bits: float, scale_bits: int = 16) -> int:
    """How many salient columns a matrix may have to take at most `bits` bits per weight, everything counted.

    A matrix of several blocks also stores which column is where; in a single block that follows from the bitmap.
    """
    words = -(-cols // WORD) * WORD
    blocks = -(-cols // size)
    column = scale_bits + (16 if blocks > 1 else 0)
    fixed = rows * (2 * words + 8 * SCALES * blocks + scale_bits) + words + column * cols
    return max(0, min(cols, int((bits * rows * cols - fixed - WORD) // rows)))


def solve(weight: Tensor, factor: Factor, cfg: QuantConfig, storage: torch.dtype, engine: Engine) -> Solved:
    """Code a matrix [n, m] whose dead columns are zero.

    Raises:
        InputError: a scale leaves the range of `storage`.
    """
    n, m = weight.shape
    order, H = factor.order, factor.H
    if order is None or H is None:
        raise TypeError("levels need a factor with its Hessian and column order")
    size = block_size(m, cfg.block_size)
    w = weight.T[order].contiguous()
    count = m if cfg.bits is None else salient_count(n, m, size, cfg.bits, 8 * storage.itemsize)
    salient = torch.zeros(m, dtype=torch.bool, device=w.device)
    salient[(w.square().sum(1) / factor.U.square().sum(0)).argsort(descending=True, stable=True)[:count]] = True
    coded = start(w, salient, factor.U.diagonal(), size, cfg.iters, storage, engine)
    feedback(coded, w, factor.U, size, storage, engine)
    G = H @ (w - coded.value)
    for _ in range(cfg.sweeps):
        refine(coded, G, H, size, storage, engine)
    error = float((G.double() * (w - coded.value).double()).sum())
    if not math.isfinite(error):
        raise InputError(
            f"W [{n}, {m}]: a scale left the range of its storage; use QuantConfig(scale_dtype='fp32') or a larger damp"
        )
    if m <= size:
        return Solved([to_block(coded, 0, order.argsort(), storage)], error, size)
    starts = range(0, m, size)
    places = [a + torch.argsort(~salient[a : a + size], stable=True) for a in starts]
    blocks = [to_block(coded, index, local, storage) for index, local in enumerate(places)]
    return Solved(blocks, error, size, order[torch.cat(places)])


def start(w: Tensor, salient: Tensor, d: Tensor, size: int, iters: int, storage: torch.dtype, engine: Engine) -> Coded:
    """Fit every block by itself, to learn the range of each row's scales, and round to it."""
    m, n = w.shape
    col, rows, most = w.new_ones(m), [], w.new_zeros(n)
    importance = d.square().reciprocal()
    for a in range(0, m, size):
        here = slice(a, min(a + size, m))
        r = w.new_zeros(SCALES, n)
        for flag in (True, False):
            places = a + torch.nonzero(salient[here] == flag)[:, 0]
            if len(places):
                part, weights = w[places], importance[places]
                c, levels = engine.fit(part, weights, *_first_guess(part, weights, 4 if flag else 2), iters)
                col[places] = c
                r[_zones(flag)] = _to_scales(levels)
                most = torch.maximum(most, levels.amax(0))
        rows.append(r)
    base = (most * (MARGIN / MAX_CODE)).to(storage)
    base = base.clamp(min=torch.finfo(storage).tiny).float()
    units = torch.cat([_to_units(r[_zones(flag)], base) for r in rows for flag in (True, False)]).view(-1, SCALES, n)
    return Coded(torch.zeros_like(w), torch.zeros_like(w, dtype=torch.uint8), col, salient, base, units)


def feedback(coded: Coded, w: Tensor, U: Tensor, size: int, storage: torch.dtype, engine: Engine) -> None:
    """GPTQ: every column takes its nearest codes and moves the columns after it; blocks are fitted as they come."""
    m, work = len(w), w.clone()
    d = U.diagonal()
    importance = d.square().reciprocal()
    for index, a in enumerate(range(0, m, size)):
        stop = min(a + size, m)
        _refit(coded, index, a, work[a:stop], importance[a:stop], engine)
        scales = coded.row_scale(index)
        for p in range(a, stop, PANEL):
            here = slice(p, min(p + PANEL, stop))
            coupling = U[here, here] / d[here, None]
            col, value, code, change = engine.sweep(
                work[here], None, coupling, scales, coded.col[here], coded.salient[here], storage
            )
            coded.col[here], coded.value[here], coded.code[here] = col, value, code
            work[here.stop :].addmm_((U[here, here.stop :] / d[here, None]).T, change)


def refine(coded: Coded, G: Tensor, H: Tensor, size: int, storage: torch.dtype, engine: Engine) -> None:
    """One round of coordinate descent over all columns. G: H (W - Q), [m, n], kept up to date."""
    diagonal = H.diagonal()
    for index, a in enumerate(range(0, len(H), size)):
        stop = min(a + size, len(H))
        scales = coded.row_scale(index)
        for p in range(a, stop, PANEL):
            here = slice(p, min(p + PANEL, stop))
            target = coded.value[here] + G[here] / diagonal[here, None]
            col, value, code, change = engine.sweep(
                target,
                coded.value[here],
                -H[here, here] / diagonal[here],
                scales,
                coded.col[here],
                coded.salient[here],
                storage,
            )
            coded.col[here], coded.value[here], coded.code[here] = col, value, code
            G.addmm_(H[:, here], change, alpha=-1)


def fit(weight: Tensor, importance: Tensor, col: Tensor, levels: Tensor, iters: int) -> tuple[Tensor, Tensor]:
    """Alternate column scales [k] and row magnitudes [z, n] of weights [k, n], every weight at its nearest level.

    The squared error is weighted by importance [k]. Returns (column scales, magnitudes).
    """
    magnitude = weight.abs()
    for _ in range(iters):
        value = levels.gather(0, _nearest(magnitude, levels[:, None] * col[:, None]))
        col = _column_scale(magnitude, value, col)
        index = _nearest(magnitude, levels[:, None] * col[:, None])
        times = (importance.double() * col.double())[:, None]
        squared = times * col.double()[:, None]
        fitted = []
        for z, before in enumerate(levels):
            member = index == z
            product = (times * magnitude.double()).where(member, 0.0).sum(0)
            square = squared.where(member, 0.0).sum(0)
            fitted.append(torch.where(square > 0, product / square, before.double()))
        levels = torch.stack(fitted).float()
    return col, levels


def sweep(
    work: Tensor,
    before: Tensor | None,
    coupling: Tensor,
    row_scale: Tensor,
    col: Tensor,
    salient: Tensor,
    storage: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Code columns one after the other: scale, codes, and the change passed on to the columns after it.

    Args:
        work: [k, n], what each column should be before any change.
        before: [k, n], the values a change is counted from; None: from `work` itself.
        coupling: [k, k]: a change of column j by e adds coupling[j, l] e to what column l > j should be.
        row_scale: [6, n]. col: [k], where the scales start. salient: bool [k].

    Returns:
        (col, value, code, change), see Coded.
    """
    work, col = work.clone(), col.clone()
    value, change, code = torch.empty_like(work), torch.empty_like(work), torch.empty_like(work, dtype=torch.uint8)
    for j, target in enumerate(work):
        magnitude = target.abs()
        index = _nearest(magnitude[None], _magnitudes(row_scale, col[j], bool(salient[j])))
        unit = _magnitudes(row_scale, torch.ones_like(col[j]), bool(salient[j]))
        scale = _column_scale(magnitude[None], unit.gather(0, index), col[j : j + 1])
        col[j] = scale[0].to(storage).float()
        levels = _magnitudes(row_scale, col[j], bool(salient[j]))
        index = _nearest(magnitude[None], levels)
        chosen = levels.gather(0, index)[0]
        value[j] = torch.where(target < 0, -chosen, chosen)
        code[j] = (index[0] + 4 * (target >= 0)).to(torch.uint8)
        change[j] = value[j] - (target if before is None else before[j])
        work[j + 1 :] += coupling[j, j + 1 :, None] * change[j]
    return col, value, code, change


TORCH = Engine(fit, sweep)


def to_block(coded: Coded, index: int, places: Tensor, storage: torch.dtype) -> Block:
    """The columns at some places of `coded`, all of one block, as that block in the given order."""
    salient, code = coded.salient[places], coded.code[places].T
    level, sign = code & 3, code >= 4
    return Block(
        salient=salient,
        group=torch.where(salient, level >> 1, level).long(),
        sign=sign,
        second=sign ^ (level & 1).bool(),
        row_scale=coded.units[index].T,
        mean=None,
        col_scale=coded.col[None, places].to(storage),
        col_scale2=None,
        salient_groups=2,
        row_base=coded.base.to(storage),
    )


def _refit(coded: Coded, index: int, a: int, work: Tensor, importance: Tensor, engine: Engine) -> None:
    """Fit a block to its weights as they stand when its turn comes; row scales are rounded to the rows' bases."""
    scales = coded.row_scale(index)
    for flag in (True, False):
        places = torch.nonzero(coded.salient[a : a + len(work)] == flag)[:, 0]
        if len(places) == 0:
            continue
        levels = _to_levels(scales[_zones(flag)])
        col, levels = engine.fit(work[places], importance[places], coded.col[a + places], levels, REFIT_ITERS)
        coded.col[a + places] = col
        coded.units[index][_zones(flag)] = _to_units(_to_scales(levels), coded.base)


def _first_guess(part: Tensor, importance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Column scales and magnitudes for normal weights, from the root mean squares of columns and rows."""
    col = part.square().mean(1).sqrt().clamp(min=1e-12)
    spread = (importance @ part.square() / (importance @ col.square())).sqrt()
    return col, part.new_tensor(NORMAL[count])[:, None] * spread


def _zones(salient: bool) -> slice:
    return slice(0, 4) if salient else slice(4, 6)


def _to_scales(levels: Tensor) -> Tensor:
    """Magnitudes [z, n], of whatever order -> row scales: r1 +- r2 for each pair of four, as they are for two."""
    levels = levels.sort(0, descending=True).values
    if len(levels) == 2:
        return levels
    half = levels.view(2, 2, -1) / 2
    return torch.stack([half[:, 0] + half[:, 1], half[:, 0] - half[:, 1]], 1).flatten(0, 1)


def _to_units(scales: Tensor, base: Tensor) -> Tensor:
    """Row scales [4 or 2, n] as whole multiples of the bases. The two of a salient group add up to at most MAX_CODE, so
    that r1 + r2 is as good a number as r1: kernels then look up both planes at once."""
    units = (scales / base).round().clamp(0, MAX_CODE)
    if len(units) == 4:
        units[1::2] = torch.minimum(units[1::2], MAX_CODE - units[::2])
    return units.to(torch.uint8)


def _to_levels(scales: Tensor) -> Tensor:
    return scales if len(scales) == 2 else _magnitudes(scales, scales.new_ones(()), True)


def _magnitudes(row_scale: Tensor, col: Tensor, salient: bool) -> Tensor:
    """[4 or 2, n]: the magnitudes of a column, computed as Block.values does."""
    r = row_scale * col
    return torch.stack([r[0] + r[1], r[0] - r[1], r[2] + r[3], r[2] - r[3]]) if salient else r[-2:]


def _nearest(magnitude: Tensor, levels: Tensor) -> Tensor:
    """int64: the index of the nearest of levels [z, ...], for each magnitude [...]; the first wins a tie."""
    index = torch.zeros_like(magnitude, dtype=torch.int64)
    best = (magnitude - levels[0]).abs()
    for z in range(1, len(levels)):
        distance = (magnitude - levels[z]).abs()
        index = torch.where(distance < best, z, index)
        best = torch.minimum(best, distance)
    return index


def _column_scale(magnitude: Tensor, value: Tensor, before: Tensor) -> Tensor:
    """[k]: the scales that bring value [k, n] nearest to magnitude [k, n]; what it was where nothing is known."""
    product = (magnitude.double() * value.double()).sum(1)
    square = value.double().square().sum(1)
    return torch.where((product > 0) & (square > 0), product / square, before.double()).float()
