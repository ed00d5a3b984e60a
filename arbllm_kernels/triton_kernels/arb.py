"""BiLLM, ARB and ARB-X, orders 1 and 2, all iterations in one launch (paper sections 3.1 and 3.2, equations 3-11).

Oracles: methods/billm.py (no iterations), methods/arb.py, methods/arb_x.py. One program fits one zone of ROWS rows. A
row's weights, centred on their mean, stay in registers from the first iteration to the last. What an iteration of ARB
wants to know of them are five sums,

    sum B1, sum B2, sum B1 B2, sum B1 w, sum B2 w

from which mean, alpha 1 and alpha 2 follow in a handful of operations per row. The three sums of signs are counts:
they share one 32-bit integer, ten bits each, and so one reduction. Order 1 needs the first of each kind only: it is a
search for the mean that separates the row, one comparison and two sums per iteration.

ARB-X then holds the planes. tr(R S R^T) is a quadratic form in (mean, alpha 1, alpha 2) of each row; its coefficients
are how the row's vectors 1, B1, B2, W meet in S. They come from `tl.dot` of the three vectors of small integers with
S^T, in chunks of CHUNK columns so that S never needs more than CHUNK x COLS words of shared memory; after that the
iterations touch nine numbers per row. `tf32x3` keeps float32 accuracy on tensor cores.

Grid: (tiles of rows, zones, matrices).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..gpu import MAX_SOLVER_BLOCK
from ..methods.arb import EPS
from ..methods.arb_x import EPS as OUTPUT_EPS
from .configs import ARB, ARB_X, column_tile
from .launch import launch
from .nearest import nearest_of_four, signed
from .scales import Scales
from .stack import Stack, own_rows

assert MAX_SOLVER_BLOCK < 1 << 10, "counts of a row share an integer, ten bits each"


def refine_arb(
    weight: Tensor,
    stack: Stack,
    zone: Tensor,
    zones: int,
    salient_zones: int,
    order: int,
    iters: int,
    S: Tensor | None = None,
) -> Scales:
    """Fit every zone of a stack of blocks: ARB, or ARB-X where S is given, or BiLLM with `iters` = 0 and no S.

    weight: float32 [R, k], zone: uint8 [R, k], values below `zones`; the first `salient_zones` of them are fitted with
    `order` planes, the others with one. S: float32 [L, k, k]. All contiguous.
    """
    rows, k = weight.shape
    config = ARB if S is None else ARB_X
    planes = zone.new_zeros(zone.shape)
    row = weight.new_zeros(zones, 2, rows)
    mean = weight.new_zeros(zones, rows)
    launch(
        arb_fit,
        (stack.parts(config), zones, len(stack)),
        *(weight, stack.starts, zone, S, planes, row, mean),
        *(rows, k, iters, salient_zones if order == 2 else 0),
        EPS=EPS,
        OUTPUT_EPS=OUTPUT_EPS,
        ROWS=config.rows,
        COLS=column_tile(k),
        CHUNK=config.chunk_of(k),
        **config.options(k),
    )
    return Scales(planes, row, mean=mean)


@triton.jit(do_not_specialize=["total_rows", "iters", "double_zones"])
def arb_fit(
    weight,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    zone_of,  # uint8 [R, k]
    second_moment,  # float32 [L, k, k], or None: no ARB-X
    planes,  # uint8 [R, k]
    row_scale,  # float32 [Z, 2, R]
    row_mean,  # float32 [Z, R]
    total_rows,  # R
    k,
    iters,
    double_zones,  # the first zones have two planes
    EPS: tl.constexpr,
    OUTPUT_EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    zone, matrix = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, n = own_rows(starts, matrix)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= n:
        return
    two = zone < double_zones
    cols = tl.arange(0, COLS)
    row_at = (start + rows).to(tl.int64)
    weight += row_at[:, None] * k
    zone_of += row_at[:, None] * k
    planes += row_at[:, None] * k
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    inside &= tl.load(zone_of + cols[None, :], mask=inside, other=255) == zone
    w = tl.load(weight + cols[None, :], mask=inside, other=0.0)

    count = tl.sum(inside.to(tl.float32), 1)
    safe = tl.maximum(count, 1.0)
    centre = tl.sum(w, 1) / safe
    w = tl.where(inside, w - centre[:, None], 0.0)
    total = tl.sum(w, 1)  # what rounding left
    shift = tl.zeros([ROWS], tl.float32)  # mean - centre
    alpha1 = tl.sum(tl.abs(w), 1) / safe
    alpha2 = tl.zeros([ROWS], tl.float32)
    b1 = inside & (w >= 0)
    b2 = inside & (w < w)  # nothing
    if two:
        residual = w - signed(b1, alpha1[:, None])
        shift = tl.sum(tl.where(inside, residual, 0.0), 1) / safe
        residual -= shift[:, None]
        alpha2 = tl.sum(tl.where(inside, tl.abs(residual), 0.0), 1) / safe
        b2 = inside & (residual >= 0)
        for _ in range(iters):
            counts = b1.to(tl.int32) + (b2.to(tl.int32) << 10) + ((b1 ^ b2).to(tl.int32) << 20)
            counts = tl.sum(counts, 1)
            n1 = 2.0 * (counts & 1023).to(tl.float32) - count
            n2 = 2.0 * ((counts >> 10) & 1023).to(tl.float32) - count
            n12 = count - 2.0 * (counts >> 20).to(tl.float32)
            t1 = tl.sum(signed(b1, w), 1)
            t2 = tl.sum(signed(b2, w), 1)
            shift = (total - alpha1 * n1 - alpha2 * n2) / safe
            alpha1 = (t1 - shift * n1 - alpha2 * n12) / (count + EPS)
            alpha2 = (t2 - shift * n2 - alpha1 * n12) / (count + EPS)
            b1, b2 = nearest_of_four(w - shift[:, None], alpha1[:, None], alpha2[:, None])
            b1 &= inside
            b2 &= inside
    else:
        for _ in range(iters):
            n1 = 2.0 * tl.sum(b1.to(tl.int32), 1).to(tl.float32) - count
            t1 = tl.sum(signed(b1, w), 1)
            shift = (total - alpha1 * n1) / safe
            alpha1 = (t1 - shift * n1) / (count + EPS)
            b1 = inside & (w >= shift[:, None])
    tl.store(planes + cols[None, :], b1.to(tl.uint8) + 2 * b2.to(tl.uint8), mask=inside)

    mean = centre + shift
    if second_moment is not None:
        tl.debug_barrier()  # the planes are read again, chunk by chunk
        one_s = tl.zeros([ROWS, COLS], tl.float32)  # 1 S^T, B1 S^T, B2 S^T on the zone
        b1_s = tl.zeros([ROWS, COLS], tl.float32)
        b2_s = tl.zeros([ROWS, COLS], tl.float32)
        for first in range(0, k, CHUNK):
            own = first + tl.arange(0, CHUNK)
            here = (rows < n)[:, None] & (own < k)[None, :]
            here &= tl.load(zone_of + own[None, :], mask=here, other=255) == zone
            held = tl.load(planes + own[None, :], mask=here, other=0)
            s_at = matrix * k * k + cols[None, :] * k + own[:, None]
            s = tl.load(second_moment + s_at, mask=(own < k)[:, None] & (cols < k)[None, :], other=0.0)
            one = here.to(tl.float32)
            one_s = tl.dot(one, s, one_s, input_precision="tf32x3")
            b1_s = tl.dot(signed((held & 1) != 0, one), s, b1_s, input_precision="tf32x3")
            if two:
                b2_s = tl.dot(signed((held & 2) != 0, one), s, b2_s, input_precision="tf32x3")
        one = inside.to(tl.float32)
        p1, p2 = signed(b1, one), signed(b2, one)
        original = tl.where(inside, w + centre[:, None], 0.0)
        w_one, w_b1, w_b2 = tl.sum(one_s * original, 1), tl.sum(b1_s * original, 1), tl.sum(b2_s * original, 1)
        one_one, one_b1, one_b2 = tl.sum(one_s * one, 1), tl.sum(one_s * p1, 1), tl.sum(one_s * p2, 1)
        b1_b1, b1_b2, b2_b2 = tl.sum(b1_s * p1, 1), tl.sum(b1_s * p2, 1), tl.sum(b2_s * p2, 1)
        for _ in range(iters):
            mean = (w_one - one_b1 * alpha1 - one_b2 * alpha2) / (one_one + OUTPUT_EPS)
            alpha1 = (w_b1 - one_b1 * mean - b1_b2 * alpha2) / (b1_b1 + OUTPUT_EPS)
            if two:
                alpha2 = (w_b2 - one_b2 * mean - b1_b2 * alpha1) / (b2_b2 + OUTPUT_EPS)

    scale_at = zone.to(tl.int64) * 2 * total_rows + row_at
    tl.store(row_scale + scale_at, alpha1, mask=rows < n)
    tl.store(row_scale + scale_at + total_rows, alpha2, mask=rows < n)
    tl.store(row_mean + zone.to(tl.int64) * total_rows + row_at, mean, mask=rows < n)
