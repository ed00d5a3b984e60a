"""Adds up what programs left for parts of the columns, in a fixed order, so that a product is the same each time."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .configs import ADD_PARTS
from .launch import launch


def sum_parts(sums: Tensor, y: Tensor) -> None:
    """y = the sum of `sums`, float32 [parts, *y.shape], rounded to y's dtype."""
    tiles = -(-y.numel() // ADD_PARTS.rows)
    launch(add_parts, (tiles,), sums, y, y.numel(), sums.shape[0], ROWS=ADD_PARTS.rows, **ADD_PARTS.options())


@triton.jit(do_not_specialize=["size", "parts"])
def add_parts(sums, y, size, parts, ROWS: tl.constexpr):
    """sums: float32 [parts, size] -> y [size]."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(parts):
        total += tl.load(sums + part * size + at, mask=at < size, other=0.0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=at < size)
