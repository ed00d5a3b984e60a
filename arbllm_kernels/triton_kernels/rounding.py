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


def rounding_error(weight: Tensor, d: Tensor, zone: Tensor, scales: Scales, double_zones: int) -> tuple[Tensor, Tensor]:
    """(E float32 [L, n, k], sum E^2 float64 [L, parts]) for scales already rounded to their storage type.

    weight: float32 [L, n, k] and d: float32 [L, k], last strides 1. zone: uint8 [L, n, k]. Zones below `double_zones`
    have two planes.
    """
    matrices, n, k = weight.shape
    parts, tiles = ROUNDING.parts(n)
    error = torch.empty(matrices, n, k, dtype=torch.float32, device=weight.device)
    squares = torch.empty(matrices, parts, dtype=torch.float64, device=weight.device)
    launch(
        rounding_pass,
        (parts, matrices),
        *(weight, d, zone, scales.planes, scales.row, scales.mean, scales.col, error, squares),
        *(n, k, weight.stride(0), weight.stride(1), d.stride(0), scales.row.shape[1], tiles, double_zones),
        ROWS=ROUNDING.rows,
        COLS=column_tile(k),
        **ROUNDING.options(k),
    )
    return error, squares


@triton.jit(do_not_specialize=["zones", "tiles", "double_zones"])
def rounding_pass(
    weight,  # float32 [L, n, k], strides (matrix_stride, row_stride, 1)
    diagonal,  # float32 [L, k], strides (d_stride, 1)
    zone_of,  # uint8 [L, n, k]
    planes,  # uint8 [L, n, k]
    row_scale,  # [L, Z, 2, n]
    row_mean,  # [L, Z, n] or None
    col_scale,  # [L, Z, 2, k] or None
    error,  # float32 [L, n, k]
    squares,  # float64 [L, parts]
    n,
    k,
    matrix_stride,
    row_stride,
    d_stride,
    zones,
    tiles,
    double_zones,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    part, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    d = tl.load(diagonal + matrix * d_stride + cols, mask=cols < k, other=1.0)
    total = tl.zeros([ROWS], tl.float64)
    for tile in range(tiles):
        rows = ((part * tiles + tile) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (rows < n)[:, None] & (cols < k)[None, :]
        at = matrix * n * k + rows[:, None] * k + cols[None, :]
        zone = tl.load(zone_of + at, mask=inside, other=0).to(tl.int32)
        plane = tl.load(planes + at, mask=inside, other=0)
        slot = matrix * zones + zone
        double = inside & (zone < double_zones)
        first = tl.load(row_scale + slot * 2 * n + rows[:, None], mask=inside, other=0.0).to(tl.float32)
        second = tl.load(row_scale + slot * 2 * n + n + rows[:, None], mask=double, other=0.0).to(tl.float32)
        if col_scale is not None:
            first *= tl.load(col_scale + slot * 2 * k + cols[None, :], mask=inside, other=0.0).to(tl.float32)
            second *= tl.load(col_scale + slot * 2 * k + k + cols[None, :], mask=double, other=0.0).to(tl.float32)
        value = signed((plane & 1) != 0, first)
        value = tl.where(double, value + signed((plane & 2) != 0, second), value)
        if row_mean is not None:
            value += tl.load(row_mean + slot * n + rows[:, None], mask=inside, other=0.0).to(tl.float32)
        w_at = matrix * matrix_stride + rows[:, None] * row_stride + cols[None, :]
        e = tl.load(weight + w_at, mask=inside, other=0.0) - value
        e = tl.div_rn(tl.where(inside, e, 0.0), tl.broadcast_to(d[None, :], [ROWS, COLS]))
        tl.store(error + at, e, mask=inside)
        wide = e.to(tl.float64)
        total += tl.sum(wide * wide, 1)
    tl.store(squares + matrix * tl.num_programs(0) + part, tl.sum(total, 0))
