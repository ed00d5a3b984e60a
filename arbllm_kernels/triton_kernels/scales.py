"""Scales: what a refinement kernel found for a batch of blocks, still float32, all zones together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scales:
    """Planes and scales of L blocks [n, k] with Z zones. What belongs to no plane or zone is 0.

    planes: uint8 [L, n, k], bit 0 the first sign, bit 1 the second. row: float32 [L, Z, 2, n]. mean: float32 [L, Z, n]
    or None. col: float32 [L, Z, 2, k] or None.
    """

    planes: Tensor
    row: Tensor
    mean: Tensor | None = None
    col: Tensor | None = None

    def rounded(self, dtype: torch.dtype) -> Scales:
        """The scales as they will be stored."""
        mean, col = (None if t is None else t.to(dtype) for t in (self.mean, self.col))
        return Scales(self.planes, self.row.to(dtype), mean, col)

    def values(self, zone: Tensor) -> Tensor:
        """The approximation, float32 [L, n, k], for zones uint8 [L, n, k]."""
        at = zone.long()
        value = torch.zeros_like(zone, dtype=self.row.dtype)
        for o in range(2):
            scale = self.row[:, :, o].transpose(1, 2).gather(2, at)
            if self.col is not None:
                scale = scale * self.col[:, :, o].gather(1, at)
            value += torch.where((self.planes >> o & 1).bool(), scale, -scale)
        return value if self.mean is None else value + self.mean.transpose(1, 2).gather(2, at)
