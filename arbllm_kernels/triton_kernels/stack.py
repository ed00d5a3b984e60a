"""Matrices of different heights, one below the other, so that they share every launch.

A block of k columns of L matrices is one array [R, k], R the rows of all of them. A kernel has programs for the tallest
matrix; each reads which rows are its own matrix's, and returns at once if it lies below them. How a matrix is cut into
parts follows from its own height alone, and so do its results: they have the same bits whatever else is in the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import RowConfig


@dataclass(frozen=True, eq=False)
class Stack:
    """heights: rows of each of the L matrices. starts: int32 [L + 1], the first row of each, then R. owner: int64 [R],
    which matrix a row belongs to.
    """

    heights: tuple[int, ...]
    starts: Tensor
    owner: Tensor

    @classmethod
    def of(cls, heights: Sequence[int], device: torch.device | str) -> Stack:
        """Copies to the device, and so may wait for it."""
        starts = torch.tensor([0, *accumulate(heights)], dtype=torch.int32)
        owner = torch.arange(len(heights)).repeat_interleave(torch.tensor(heights))
        return cls(tuple(heights), starts.to(device), owner.to(device))

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def rows(self) -> int:
        return sum(self.heights)

    def parts(self, config: RowConfig) -> int:
        """Programs along the rows, enough for every matrix."""
        return max(config.parts(n)[0] for n in self.heights)

    def span(self, i: int) -> slice:
        """The rows of matrix i."""
        first = sum(self.heights[:i])
        return slice(first, first + self.heights[i])

    def runs(self) -> list[tuple[slice, int]]:
        """Neighbours of equal height: (their rows, how many they are)."""
        found, first = [], 0
        for n, same in groupby(self.heights):
            count = len(list(same))
            found.append((slice(first, first + count * n), count))
            first += count * n
        return found


@triton.jit
def own_rows(starts, matrix):
    """(first row of a matrix in the stack, its rows)."""
    first = tl.load(starts + matrix)
    return first, tl.load(starts + matrix + 1) - first


@triton.jit
def own_parts(n, ROWS: tl.constexpr, MAX_PARTS: tl.constexpr):
    """RowConfig.parts on the device: (programs along n rows, tiles of each)."""
    tiles = tl.cdiv(n, ROWS)
    each = tl.cdiv(tiles, MAX_PARTS)
    return tl.cdiv(tiles, each), each
