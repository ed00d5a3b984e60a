"""y = x W^T for a few rows of x, W dequantized in registers (decode, batch 1 to 8; oracle: PackedWeight.dequantize).

A decoding step reads every bit of the weight once, so the packed bytes are the floor. A program owns ROWS rows of W
and walks over all their columns; x, gathered by the storage order, is small enough for the caches. Sums are float32,
one per entry of the tile until the end, so that the loop holds no reduction.

Grid: (tiles of rows,). In registers: a tile [ROWS, COLS] of weights, accumulators [BATCH, ROWS, COLS].
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import gemv_config
from .launch import launch
from .weight_tile import packed_kernel_args, weight_tile


def gemv(x: Tensor, *args: Any) -> Tensor:
    """arb::linear for x [batch, m], contiguous, of fp32, fp16 or bf16, batch 1 to 8: [batch, n] in x's dtype."""
    config = gemv_config(x.shape[0])
    arguments, options, factor = packed_kernel_args(config.cols, *args)
    rows, _, block = args[10][:3]
    y = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    tiles = -(-block // options["COLS"])
    launch(
        gemv_kernel,
        (-(-rows // config.rows),),
        *(*arguments, x, args[8], y, x.shape[0], factor, tiles),
        BATCH=triton.next_power_of_2(x.shape[0]),
        ROWS=config.rows,
        **options,
        **config.options,
    )
    return y


@triton.jit(do_not_specialize=["blocks", "tiles", "batch"])
def gemv_kernel(
    sign,
    group,
    second,
    row_scale,
    row_base,
    mean,
    col_scale,
    col_scale2,
    starts,
    n,
    m,
    block_size,
    blocks,
    words,
    second_words,
    x,  # [batch, m]
    order,  # int32 [m]: the column at each storage position
    y,  # [batch, n]
    batch,
    factor: tl.float32,
    tiles,  # per block
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    COLS: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, BATCH)
    sums = tl.zeros([BATCH, ROWS, COLS], tl.float32)
    for step in range(blocks * tiles):
        block, first = step // tiles, step % tiles * COLS
        w = weight_tile(
            *(sign, group, second, row_scale, row_base, mean, col_scale, col_scale2, starts),
            *(n, m, block_size, blocks, words, second_words, rows, block, first, 1.0),
            *(GROUPS, SALIENT_GROUPS, ORDER, SHARED, COLS),
        )
        place = first + tl.arange(0, COLS)
        at = block * block_size + place
        real = (place < block_size) & (at < m)
        column = tl.load(order + at, mask=real, other=0)
        x_at = lane.to(tl.int64)[:, None] * m + column[None, :]
        row = tl.load(x + x_at, mask=(lane < batch)[:, None] & real[None, :], other=0.0).to(tl.float32)
        sums += w[None, :, :] * row[:, None, :]
    out = tl.sum(sums, 2) * factor
    y_at = lane.to(tl.int64)[:, None] * n + rows[None, :]
    tl.store(y + y_at, out.to(y.dtype.element_ty), mask=(lane < batch)[:, None] & (rows < n)[None, :])
