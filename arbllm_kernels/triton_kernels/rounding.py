"""What a block is worth once its scales are stored, and the error to propagate (paper section 3.4, GPTQ).

Q is built from the scales as rounded to their storage type, in the order of operations that docs/format.md fixes and
without fused multiply-adds, so that the error that is propagated is the error that ships (oracle: Block.values).
E = (W - Q) / d goes to the GEMM that updates the columns to the right; its squares are summed in float64, and a scale
that left the range of its storage type shows there as infinity, without asking the device.

Grid: (parts of the rows, matrices). In registers: a tile [ROWS, COLS] of weights, zones and planes. Row and column
scales are gathered by zone: a few KB that stay in L1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import ROUNDING, column_tile
from .launch import launch
from .nearest import signed
from .scales import Scales
from .stack import Stack, own_parts, own_rows


def rounding_error(
    weight: Tensor, stack: Stack, d: Tensor, zone: Tensor, scales: Scales, double_zones: int
) -> tuple[Tensor, Tensor]:
    """(E float32 [R, k], sum E^2 float64 [L, parts]) for scales already rounded to their storage type.

    weight: float32 [R, k], contiguous. d: float32 [L, k], last stride 1. zone: uint8 [R, k]. Zones below `double_zones`
    have two planes. A matrix has ROUNDING.parts of its height; parts beyond are 0.
    """
    k, parts = weight.shape[1], stack.parts(ROUNDING)
    error = torch.empty_like(weight)
    squares = torch.empty(len(stack), parts, dtype=torch.float64, device=weight.device)
    launch(
        rounding_pass,
        (parts, len(stack)),
        *(weight, stack.starts, d, zone, scales.planes, scales.row, scales.mean, scales.col, error, squares),
        *(stack.rows, k, d.stride(0), len(scales.row), double_zones),
        ROWS=ROUNDING.rows,
        MAX_PARTS=ROUNDING.max_parts,
        COLS=column_tile(k),
        **ROUNDING.options(k),
    )
    return error, squares


@triton.jit(do_not_specialize=["total_rows", "zones", "double_zones"])
def rounding_pass(
    weight,  # float32 [R, k]
    starts,  # which rows are whose: stack.py
    diagonal,  # float32 [L, k], strides (d_stride, 1)
    zone_of,  # uint8 [R, k]
    planes,  # uint8 [R, k]
    row_scale,  # [Z, 2, R]
    row_mean,  # [Z, R] or None
    col_scale,  # [L, Z, 2, k] or None
    error,  # float32 [R, k]
    squares,  # float64 [L, parts]
    total_rows,  # R
    k,
    d_stride,
    zones,
    double_zones,
    ROWS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    COLS: tl.constexpr,
):
    part, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    squares += matrix * tl.num_programs(0) + part
    start, n = own_rows(starts, matrix)
    parts, tiles = own_parts(n, ROWS, MAX_PARTS)
    if part >= parts:
        tl.store(squares, 0.0)
        return
    cols = tl.arange(0, COLS)
    d = tl.load(diagonal + matrix * d_stride + cols, mask=cols < k, other=1.0)
    total = tl.zeros([ROWS], tl.float64)
    for tile in range(tiles):
        rows = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < n)[:, None] & (cols < k)[None, :]
        row = (start + rows).to(tl.int64)[:, None]  # in the stack
        at = row * k + cols[None, :]
        zone = tl.load(zone_of + at, mask=inside, other=0).to(tl.int64)
        plane = tl.load(planes + at, mask=inside, other=0)
        double = inside & (zone < double_zones)
        scale_at = zone * 2 * total_rows + row
        first = tl.load(row_scale + scale_at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(row_scale + scale_at + total_rows, mask=double, other=0.0).to(tl.float32)
        if col_scale is not None:
            slot = matrix * zones + zone
            first *= tl.load(col_scale + slot * 2 * k + cols[None, :], mask=inside, other=0.0).to(tl.float32)
            second *= tl.load(col_scale + slot * 2 * k + k + cols[None, :], mask=double, other=0.0).to(tl.float32)
        value = signed((plane & 1) != 0, first)
        value = tl.where(double, value + signed((plane & 2) != 0, second), value)
        if row_mean is not None:
            value += tl.load(row_mean + zone * total_rows + row, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(weight + at, mask=inside, other=0.0) - value
        e = tl.div_rn(tl.where(inside, e, 0.0), tl.broadcast_to(d[None, :], [ROWS, COLS]))
        tl.store(error + at, e, mask=inside)
        wide = e.to(tl.float64)
        total += tl.sum(wide * wide, 1)
    tl.store(squares, tl.sum(total, 0))
