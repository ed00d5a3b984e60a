"""Scales: what a refinement kernel found for a stack of blocks, still float32, all zones together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .stack import Stack


@dataclass(frozen=True, eq=False)
class Scales:
    """Planes and scales of L blocks, R rows in all, with Z zones. What belongs to no plane or zone is 0.

    planes: uint8 [R, k], bit 0 the first sign, bit 1 the second. row: float32 [Z, 2, R]. mean: float32 [Z, R] or None.
    col: float32 [L, Z, 2, k] or None.
    """

    planes: Tensor
    row: Tensor
    mean: Tensor | None = None
    col: Tensor | None = None

    def rounded(self, dtype: torch.dtype) -> Scales:
        """The scales as they will be stored."""
        mean, col = (None if t is None else t.to(dtype) for t in (self.mean, self.col))
        return Scales(self.planes, self.row.to(dtype), mean, col)

    def values(self, zone: Tensor, stack: Stack) -> Tensor:
        """The approximation, float32 [R, k], for zones uint8 [R, k]."""
        at = zone.long()
        value = torch.zeros_like(zone, dtype=self.row.dtype)
        for o in range(2):
            scale = self.row[:, o].T.gather(1, at)
            if self.col is not None:
                columns = torch.arange(at.shape[1], device=at.device)
                scale = scale * self.col[:, :, o][stack.owner[:, None], at, columns]
            value += torch.where((self.planes >> o & 1).bool(), scale, -scale)
        return value if self.mean is None else value + self.mean.T.gather(1, at)
