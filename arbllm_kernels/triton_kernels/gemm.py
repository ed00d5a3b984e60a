"""y = x W^T on tensor cores, W dequantized in registers (prefill, batches; oracle: PackedWeight.dequantize).

The columns of x are brought into storage order once by the library; then both operands of `tl.dot` are plain tiles.
Weights are rounded to the type of x for the tensor cores and sums kept in float32; 2^exponent is applied to the sums,
so that fp16 weights stay in range. With float32 x, `tf32x3` keeps float32 accuracy.

Grid: (tiles of W's rows, tiles of x's rows). In registers: accumulators [X_ROWS, ROWS], a tile [32, ROWS] of W^T.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import gemm_config
from .launch import launch
from .weight_tile import packed_kernel_args, weight_tile


def gemm(x: Tensor, *args: Any) -> Tensor:
    """arb::linear for x [batch, m] of fp32, fp16 or bf16. Returns [batch, n] of x's dtype."""
    config = gemm_config(x.shape[0], x.dtype)
    arguments, options, factor = packed_kernel_args(*args)
    rows = args[10][0]
    stored = x.index_select(1, args[8])
    y = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    launch(
        gemm_kernel,
        (-(-rows // config.rows), -(-x.shape[0] // config.x_rows)),
        *(*arguments, stored, y, x.shape[0], factor),
        X_ROWS=config.x_rows,
        ROWS=config.rows,
        **options,
        **config.options,
    )
    return y


@triton.jit(do_not_specialize=["blocks", "batch"])
def gemm_kernel(
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
    x,  # [batch, m], columns in storage order
    y,  # [batch, n]
    batch,
    factor: tl.float32,
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGNED: tl.constexpr,
    X_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x_rows = tl.program_id(1) * X_ROWS + tl.arange(0, X_ROWS)
    sums = tl.zeros([X_ROWS, ROWS], tl.float32)
    x += x_rows.to(tl.int64)[:, None] * m
    for block in range(blocks):
        begin = block * block_size
        count = tl.load(starts + block) - tl.load(starts + block - 1, mask=block > 0, other=0)
        end = tl.minimum(block_size, m - begin)
        for salient in tl.static_range(2):
            low, high = 0, count
            if not salient:
                low, high = count, end
            for first in range(low // 32 * 32, high, 32):
                place = first + tl.arange(0, 32)
                real = (x_rows < batch)[:, None] & ((place >= low) & (place < high))[None, :]
                part = tl.load(x + (begin + place)[None, :], mask=real, other=0.0)
                w = weight_tile(
                    *(sign, group, second, row_scale, row_base, mean, col_scale, col_scale2, starts),
                    *(n, m, block_size, blocks, words, second_words, rows, block, first, 1.0),
                    *(salient, GROUPS, SALIENT_GROUPS, ORDER, SHARED, ALIGNED),
                )
                sums = tl.dot(part, w.to(part.dtype), sums, input_precision="tf32x3")
    y_at = x_rows.to(tl.int64)[:, None] * n + rows[None, :]
    real = (x_rows < batch)[:, None] & (rows < n)[None, :]
    tl.store(y + y_at, (sums * factor).to(y.dtype.element_ty), mask=real)
