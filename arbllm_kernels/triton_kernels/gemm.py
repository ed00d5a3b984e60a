"""y = x W^T on tensor cores, W dequantized in registers (prefill, batches; oracle: PackedWeight.dequantize).

The columns of x are brought into storage order once by the library; then both operands of `tl.dot` are plain tiles.
Weights are rounded to the type of x for the tensor cores and sums kept in float32; 2^exponent is applied to the sums,
so that fp16 weights stay in range. With float32 x, `tf32x3` keeps float32 accuracy.

Grid: (tiles of W's rows, tiles of x's rows, parts of the columns), so many parts that the device is busy; they are
added up in a fixed order. In registers: accumulators [X_ROWS, ROWS], a tile [32, ROWS] of W^T.

`dense_gemm` is for more rows of x than this serves: each program above rebuilds its weights for 64 of them. It writes
the weight out once, in tiles, rounded as here, and leaves the products to the library.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import gemm_config
from .dequantize import stored_columns
from .launch import launch
from .parts import sum_parts
from .weight_tile import packed_kernel_args, weight_tile

SAFE_EXPONENT = 8
TILE_WEIGHTS = 1 << 26  # weights per dense tile: 128 MB of half precision


def gemm(x: Tensor, *args: Any) -> Tensor:
    """arb::linear for x [batch, m] of fp32, fp16 or bf16. Returns [batch, n] of x's dtype."""
    config = gemm_config(x.shape[0], x.dtype)
    arguments, options, factor = packed_kernel_args(*args)
    batch, (rows, cols) = x.shape[0], args[10][:2]
    stored = x.index_select(1, args[8])
    tiles = (-(-rows // config.rows), -(-batch // config.x_rows))
    parts, per_part = config.parts(tiles[0] * tiles[1], cols)
    y = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    sums = y if parts == 1 else torch.empty(parts, batch, rows, dtype=torch.float32, device=x.device)
    launch(
        gemm_kernel,
        (*tiles, parts),
        *(*arguments, stored, sums, batch, per_part, factor),
        X_ROWS=config.x_rows,
        ROWS=config.rows,
        **options,
        **config.options,
    )
    if parts > 1:
        sum_parts(sums, y)
    return y


def dense_gemm(x: Tensor, *args: Any) -> Tensor:
    """The same product, by way of dense tiles of the weight in x's dtype.

    Libraries may add parts of a half-precision product in half precision. So the tiles hold weights of their own size,
    as far as fp16 has room for it, and only the rest of 2^exponent is left to the sums.
    """
    rows, cols, *_, exponent, _ = args[10]
    inside = max(-SAFE_EXPONENT, min(exponent, SAFE_EXPONENT))
    stored = x.index_select(1, args[8])
    y = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    step = max(1, TILE_WEIGHTS // cols)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        dense = stored_columns(*args, first=first, last=last, dtype=x.dtype, factor=2.0**inside)
        torch.addmm(y.new_empty(1), stored, dense, beta=0.0, alpha=2.0 ** (exponent - inside), out=y[:, first:last])
    return y


@triton.jit(do_not_specialize=["blocks", "batch", "per_part"])
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
    sums_at,  # [parts, batch, n]
    batch,
    per_part,  # columns of a part, a multiple of 32
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
    start = tl.program_id(2) * per_part
    stop = tl.minimum(start + per_part, m)
    for block in range(start // block_size, tl.cdiv(stop, block_size)):
        begin = block * block_size
        count = tl.load(starts + block) - tl.load(starts + block - 1, mask=block > 0, other=0)
        from_place, end = tl.maximum(start - begin, 0), tl.minimum(block_size, stop - begin)
        for salient in tl.static_range(2):
            low, high = from_place, tl.minimum(count, end)
            if not salient:
                low, high = tl.maximum(count, from_place), end
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
    at = (tl.program_id(2) * batch + x_rows).to(tl.int64)[:, None] * n + rows[None, :]
    real = (x_rows < batch)[:, None] & (rows < n)[None, :]
    tl.store(sums_at + at, (sums * factor).to(sums_at.dtype.element_ty), mask=real)
