"""Dense weights from packed ones, bit for bit (oracle: PackedWeight.dequantize).

Grid: (tiles of rows, tiles of columns). In registers: one tile of weight_tile.py, whose lanes are rows. So what is
written is W^T, [m, n], where neighbouring lanes fill whole lines of memory; columns stand in storage order, and the
library brings them into their own. Nothing is fused: every value is rounded as docs/format.md says.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import DEQUANTIZE
from .launch import launch
from .weight_tile import packed_kernel_args, weight_tile


def dequantize(*args: Any) -> Tensor:
    """arb::dequantize: the dense weight, float32 [n, m], in column order."""
    stored = stored_columns(*args, first=0, last=args[10][0])
    return torch.empty_like(stored).index_copy_(0, args[8].long(), stored).T.contiguous()


def stored_columns(
    *args: Any, first: int, last: int, dtype: torch.dtype = torch.float32, factor: float | None = None
) -> Tensor:
    """Rows first .. last - 1 of the dense weight, transposed: [m, last - first], m in storage order, of `dtype`.

    factor: in place of the weight's 2^exponent.
    """
    arguments, options, own = packed_kernel_args(*args)
    cols, block = args[10][1:3]
    rows, tiles = last - first, -(-block // 32)
    dense = torch.empty(cols, rows, dtype=dtype, device=args[0].device)
    launch(
        dequantize_kernel,
        (-(-rows // DEQUANTIZE.rows), tiles * -(-cols // block)),
        *(*arguments, dense, own if factor is None else factor, tiles, first, rows),
        ROWS=DEQUANTIZE.rows,
        **options,
        **DEQUANTIZE.options,
    )
    return dense


@triton.jit(do_not_specialize=["blocks", "tiles", "first_row", "count"])
def dequantize_kernel(
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
    dense,  # [m, count], storage order
    factor: tl.float32,
    tiles,  # per block
    first_row,
    count,  # rows wanted
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
):
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block, first = tl.program_id(1) // tiles, tl.program_id(1) % tiles * 32
    count_salient = tl.load(starts + block) - tl.load(starts + block - 1, mask=block > 0, other=0)
    place = first + tl.arange(0, 32)
    at = block * block_size + place
    real = (own < count)[None, :] & ((place < block_size) & (at < m))[:, None]
    dense += at.to(tl.int64)[:, None] * count + own[None, :]
    for salient in tl.static_range(2):
        kind = (place < count_salient) if salient else (place >= count_salient)
        if tl.max(kind.to(tl.int32), 0) > 0:
            value = weight_tile(
                *(sign, group, second, row_scale, row_base, mean, col_scale, col_scale2, starts),
                *(n, m, block_size, blocks, words, second_words, first_row + own, block, first, factor),
                *(salient, GROUPS, SALIENT_GROUPS, ORDER, SHARED, ALIGNED),
            )
            tl.store(dense, value.to(dense.dtype.element_ty), mask=real & kind[:, None])
