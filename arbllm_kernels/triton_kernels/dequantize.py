"""Dense weights from packed ones, bit for bit (oracle: PackedWeight.dequantize).

Grid: (tiles of rows, tiles of columns). In registers: one tile of weight_tile.py. Nothing is fused, so that every value
is rounded as docs/format.md says; the tile is stored in storage order, or scattered to column order.
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


def dequantize(*args: Any, first: int = 0, last: int | None = None, stored: bool = False) -> Tensor:
    """arb::dequantize: rows first .. last - 1 of the dense weight, float32, in column or storage order."""
    arguments, options, factor = packed_kernel_args(DEQUANTIZE.cols, *args)
    order, (rows, cols, block) = args[8], args[10][:3]
    rows = (rows if last is None else last) - first
    dense = torch.empty(rows, cols, dtype=torch.float32, device=args[0].device)
    tiles = -(-block // options["COLS"])
    launch(
        dequantize_kernel,
        (-(-rows // DEQUANTIZE.rows), tiles * -(-cols // block)),
        *(*arguments, order, dense, factor, tiles, first, rows),
        STORED=stored,
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
    order,  # int32 [m]: the column at each storage position
    dense,  # float32 [count, m]
    factor: tl.float32,
    tiles,  # per block
    first_row,
    count,  # rows wanted
    GROUPS: tl.constexpr,
    SALIENT_GROUPS: tl.constexpr,
    ORDER: tl.constexpr,
    SHARED: tl.constexpr,
    COLS: tl.constexpr,
    STORED: tl.constexpr,
    ROWS: tl.constexpr,
):
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = first_row + own
    block = tl.program_id(1) // tiles
    first = tl.program_id(1) % tiles * COLS
    value = weight_tile(
        *(sign, group, second, row_scale, row_base, mean, col_scale, col_scale2, starts),
        *(n, m, block_size, blocks, words, second_words, rows, block, first, factor),
        *(GROUPS, SALIENT_GROUPS, ORDER, SHARED, COLS),
    )
    place = first + tl.arange(0, COLS)
    at = block * block_size + place
    real = (place < block_size) & (at < m)
    column = at
    if not STORED:
        column = tl.load(order + at, mask=real, other=0)
    tl.store(
        dense + own.to(tl.int64)[:, None] * m + column[None, :], value, mask=(own < count)[:, None] & real[None, :]
    )
