"""The sweep of `arb-levels`: columns coded one after the other (oracle: methods/levels.py, sweep).

A column's scale depends on all rows, so a column ends where its sums are known, and the launch boundary is the barrier,
as in arb_rc.py. Launch j finishes column j - 1 and begins column j:

* The scale of column j - 1 follows from the sums that launch j - 1 left; every program adds them up again, in a fixed
  order. The program codes its rows and passes the change on to the columns after it.
* The nearest levels of column j, at the scale it starts with, give the next sums: |w| u and u^2, u the magnitude at
  scale 1.

All operations are the oracle's, in its order and without fused multiply-adds; only the order of the sums differs, and
they are float64.

Grid: (tiles of rows). In registers: a tile [COLS, ROWS] of what the columns should be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..methods.levels import Engine, fit
from .configs import LEVELS
from .launch import launch


class Sweeper:
    """methods.levels.sweep for the panels of one matrix.

    On a CUDA device the launches of a panel are recorded once, as a graph, and replayed for the panels like it: from
    Python they would take fifteen times as long as the device does.
    """

    def __init__(self) -> None:
        self._panels: dict[object, _Panel] = {}

    def sweep(
        self,
        work: Tensor,
        before: Tensor | None,
        coupling: Tensor,
        row_scale: Tensor,
        col: Tensor,
        salient: Tensor,
        storage: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        given = (work, before, coupling, row_scale, col, salient.view(torch.uint8))
        key = (work.shape, before is None, storage)
        if key not in self._panels:
            self._panels[key] = _Panel(given, storage)
        scale, value, code, change = self._panels[key].run(given)
        return scale.clone(), value.clone(), code.clone(), change.clone()


class _Panel:
    """Buffers for panels of one shape, and the launches that work on them."""

    def __init__(self, given: Sequence[Tensor | None], storage: torch.dtype) -> None:
        self._inputs = [None if t is None else t.clone(memory_format=torch.contiguous_format) for t in given]
        self._half = storage is torch.float16
        work = _present(self._inputs[0])
        self._sums = torch.empty(2, 2, LEVELS.tiles(work.shape[1]), dtype=torch.float64, device=work.device)
        self._found = (
            torch.empty_like(_present(self._inputs[4])),
            torch.empty_like(work),
            torch.empty_like(work, dtype=torch.uint8),
            torch.empty_like(work),
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        if work.is_cuda:
            self._launch()  # compiles, which a graph cannot hold
            self._graph = torch.cuda.CUDAGraph()
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # torch.cuda.graph would empty the allocator's cache, too
                self._graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._launch()
                finally:
                    self._graph.capture_end()
            here.wait_stream(aside)

    def run(self, given: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(scale, value, code, change), which the next run overwrites."""
        for own, new in zip(self._inputs, given, strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        if self._graph is None:
            self._launch()
        else:
            self._graph.replay()
        return self._found

    def _launch(self) -> None:
        k, n = _present(self._inputs[0]).shape
        tiles = LEVELS.tiles(n)
        for j in range(k + 1):
            launch(
                levels_step,
                (tiles,),
                *(*self._inputs, self._sums, *self._found, n, k, j),
                HALF=self._half,
                ROWS=LEVELS.rows,
                COLS=triton.next_power_of_2(k),
                TILES=triton.next_power_of_2(tiles),
                **LEVELS.options,
            )


def _present(t: Tensor | None) -> Tensor:
    assert t is not None
    return t


def engine() -> Engine:
    """The inner loops of one matrix. The fit is whole-matrix arithmetic, which torch's operators do well."""
    return Engine(fit, Sweeper().sweep)


@triton.jit(do_not_specialize=["j"])
def levels_step(
    work,  # float32 [k, n], changed
    before,  # float32 [k, n] or None: from `work` itself
    coupling,  # float32 [k, k]
    row_scale,  # float32 [6, n]
    col,  # float32 [k], where the scales start
    salient,  # uint8 [k]
    sums,  # float64 [parity of the column, product and square, tiles]
    scale,  # float32 [k], found
    value,  # float32 [k, n]
    code,  # uint8 [k, n]
    change,  # float32 [k, n]
    n,
    k,
    j,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TILES: tl.constexpr,
):
    tiles = tl.num_programs(0)
    rows, cols = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    live = rows < n
    r0 = tl.load(row_scale + rows, mask=live, other=0.0)
    r1 = tl.load(row_scale + n + rows, mask=live, other=0.0)
    r2 = tl.load(row_scale + 2 * n + rows, mask=live, other=0.0)
    r3 = tl.load(row_scale + 3 * n + rows, mask=live, other=0.0)
    r4 = tl.load(row_scale + 4 * n + rows, mask=live, other=0.0)
    r5 = tl.load(row_scale + 5 * n + rows, mask=live, other=0.0)
    place = cols[:, None] * n + rows[None, :]
    here = (cols >= j)[:, None] & (cols < k)[:, None] & live[None, :]
    targets = tl.load(work + place, mask=here, other=0.0)
    if j > 0:
        last = j - 1
        at = tl.arange(0, TILES)
        own = sums + (last % 2) * 2 * tiles + at
        product = tl.sum(tl.load(own, mask=at < tiles, other=0.0), 0)
        square = tl.sum(tl.load(own + tiles, mask=at < tiles, other=0.0), 0)
        old = tl.load(col + last)
        known = (product > 0) & (square > 0)
        new = tl.where(known, product / tl.where(known, square, 1.0), old.to(tl.float64)).to(tl.float32)
        if HALF:
            new = new.to(tl.float16).to(tl.float32)
        tl.store(scale + last, new, mask=tl.program_id(0) == 0)
        m0, m1, m2, m3 = _magnitudes(r0, r1, r2, r3, r4, r5, new, tl.load(salient + last) != 0)
        target = tl.load(work + last * n + rows, mask=live, other=0.0)
        index, chosen = _nearest(tl.abs(target), m0, m1, m2, m3, m0, m1, m2, m3)
        found = tl.where(target < 0, -chosen, chosen)
        origin = target
        if before is not None:
            origin = tl.load(before + last * n + rows, mask=live, other=0.0)
        step = found - origin
        tl.store(value + last * n + rows, found, mask=live)
        tl.store(code + last * n + rows, (index + tl.where(target >= 0, 4, 0)).to(tl.uint8), mask=live)
        tl.store(change + last * n + rows, step, mask=live)
        passed = tl.load(coupling + last * k + cols, mask=cols < k, other=0.0)
        targets += passed[:, None] * step[None, :]
        tl.store(work + place, targets, mask=here)
    if j < k:
        target = tl.sum(tl.where((cols == j)[:, None], targets, 0.0), 0)
        is_salient = tl.load(salient + j) != 0
        u0, u1, u2, u3 = _magnitudes(r0, r1, r2, r3, r4, r5, 1.0, is_salient)
        m0, m1, m2, m3 = _magnitudes(r0, r1, r2, r3, r4, r5, tl.load(col + j), is_salient)
        _, unit = _nearest(tl.abs(target), m0, m1, m2, m3, u0, u1, u2, u3)
        unit = tl.where(live, unit, 0.0).to(tl.float64)
        own = sums + (j % 2) * 2 * tiles + tl.program_id(0)
        tl.store(own, tl.sum(tl.abs(target).to(tl.float64) * unit, 0))
        tl.store(own + tiles, tl.sum(unit * unit, 0))


@triton.jit
def _magnitudes(r0, r1, r2, r3, r4, r5, col, salient):
    """The levels of a column, four where it is salient, else two and two that nothing is near to."""
    none = r0 * 0.0 + float("inf")
    m0 = tl.where(salient, r0 * col + r1 * col, r4 * col)
    m1 = tl.where(salient, r0 * col - r1 * col, r5 * col)
    m2 = tl.where(salient, r2 * col + r3 * col, none)
    m3 = tl.where(salient, r2 * col - r3 * col, none)
    return m0, m1, m2, m3


@triton.jit
def _nearest(magnitude, m0, m1, m2, m3, v0, v1, v2, v3):
    """The index of the nearest of m0..m3, the first where several are, and its v."""
    best = tl.abs(magnitude - m0)
    index = tl.zeros_like(magnitude).to(tl.int32)
    value = v0
    distance = tl.abs(magnitude - m1)
    index, value = tl.where(distance < best, 1, index), tl.where(distance < best, v1, value)
    best = tl.minimum(best, distance)
    distance = tl.abs(magnitude - m2)
    index, value = tl.where(distance < best, 2, index), tl.where(distance < best, v2, value)
    best = tl.minimum(best, distance)
    distance = tl.abs(magnitude - m3)
    index, value = tl.where(distance < best, 3, index), tl.where(distance < best, v3, value)
    return index, value
