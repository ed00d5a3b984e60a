"""The pieces every binarizer shares: a zone, its fit, masked means, the nearest of four levels, residual binarization.

A zone is a set of entries of one block that share scales: W [n, k] and a boolean mask [n, k]. All means are over the
mask; a row or column without entries gives 0. Signs are stored bits, so sign(0) = +1 (the reference program has
sign(0) = 0, which no bit can hold; it shows on exact zeros only).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..block import Block, signed


@dataclass(frozen=True, eq=False)
class Zone:
    """Weights [n, k], their mask, and what a method may want to know about the inputs.

    S is the mean over calibration sequences of X_b^T X_b on these columns, float32 [k, k]; None where unused.
    """

    weight: Tensor
    mask: Tensor
    S: Tensor | None = None

    def signed(self, plane: Tensor) -> Tensor:
        """The binary matrix B of a plane as numbers: +1 or -1 on the mask, 0 elsewhere."""
        return (2 * plane.to(self.weight.dtype) - 1) * self.mask


@dataclass(frozen=True, eq=False)
class Fit:
    """W ~ mean + sum_o row_scale_o * col_scale_o * B_o, on the mask.

    planes: bool [n, k] per order, True is +1. row_scale: [n, order]. mean: [n] or None. col_scale: [order, k] or None.
    """

    planes: list[Tensor]
    row_scale: Tensor
    mean: Tensor | None = None
    col_scale: Tensor | None = None

    def values(self) -> Tensor:
        """The approximation, [n, k]; meaningful on the mask."""
        out = torch.zeros_like(self.planes[0], dtype=self.row_scale.dtype)
        for o, plane in enumerate(self.planes):
            scale = self.row_scale[:, o : o + 1]
            if self.col_scale is not None:
                scale = scale * self.col_scale[o]
            out += signed(plane, scale)
        return out if self.mean is None else out + self.mean[:, None]


@dataclass(frozen=True, eq=False)
class Solved:
    """A matrix in blocks, scales rounded; tr(R H R^T) with the damped H of its factor; an explicit column order."""

    blocks: list[Block]
    error: float
    block_size: int
    columns: Tensor | None = None


class Binarizer(Protocol):
    """A method of the paper: fits a zone with `order` planes in `iters` refinement iterations."""

    def __call__(self, zone: Zone, order: int, iters: int) -> Fit: ...


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[n, k] -> [n], over the mask; 0 for an empty row."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def col_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[n, k] -> [k], over the mask; 0 for an empty column."""
    return (values * mask).sum(0) / mask.sum(0).clamp(min=1)


def nearest_of_four(target: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
    """The planes (B1, B2) whose +-first +-second is nearest to `target` (equation 8).

    `first` and `second` broadcast to `target`. Candidates in the order --, -+, +-, ++; the first wins a tie. The paper
    sorts the four and searches; comparing the four distances gives the same planes.
    """
    best = (target + first + second).abs()
    plane1, plane2 = torch.zeros_like(target, dtype=torch.bool), torch.zeros_like(target, dtype=torch.bool)
    for sign1, sign2 in ((False, True), (True, False), (True, True)):
        level = (first if sign1 else -first) + (second if sign2 else -second)
        distance = (target - level).abs()
        better = distance < best
        best = torch.where(better, distance, best)
        plane1 = torch.where(better, sign1, plane1)
        plane2 = torch.where(better, sign2, plane2)
    return [plane1, plane2]
