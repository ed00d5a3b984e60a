"""ARB-RC: row and column scales, no mean (paper section 3.3, equations 12 and 13)."""

from __future__ import annotations

import torch
from torch import Tensor

from .binarize import Fit, Zone, col_mean, nearest_of_four, row_mean

EPS = 1e-8


def binarize(zone: Zone, order: int, iters: int) -> Fit:
    """Alternate exact row and column scales; with two planes each entry then takes the nearest of four levels."""
    return _order_one(zone, iters) if order == 1 else _order_two(zone, iters)


def _order_one(zone: Zone, iters: int) -> Fit:
    """B = sign(W) stays (the scales stay positive), so this is a weighted rank-1 fit of |W| on the mask."""
    row, col, plane = _start(zone.weight, zone.mask)
    binary = zone.signed(plane)
    for _ in range(iters):
        row, col = _alternate(binary, zone.weight, col)
    return Fit([plane], row[:, None], col_scale=col[None])


def _order_two(zone: Zone, iters: int) -> Fit:
    weight, mask = zone.weight, zone.mask
    row1, col1, plane1 = _start(weight, mask)
    row2, col2, plane2 = _start(weight - torch.outer(row1, col1) * zone.signed(plane1), mask)
    for _ in range(iters):
        b1, b2 = zone.signed(plane1), zone.signed(plane2)
        row1, col1 = _alternate(b1, weight - torch.outer(row2, col2) * b2, col1)
        row2, col2 = _alternate(b2, weight - torch.outer(row1, col1) * b1, col2)
        plane1, plane2 = nearest_of_four(weight, torch.outer(row1, col1), torch.outer(row2, col2))
    return Fit([plane1, plane2], torch.stack([row1, row2], 1), col_scale=torch.stack([col1, col2]))


def _start(target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 12: row means of |W|, then column means of |W| / row scale, and signs."""
    magnitude = target.abs()
    row = row_mean(magnitude, mask)
    safe = torch.where(row > 0, row, 1.0)  # an all-zero row has nothing to divide
    return row, col_mean(magnitude / safe[:, None], mask), target >= 0


def _alternate(binary: Tensor, target: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 13: the exact row scales given the column scales, then the exact column scales given those."""
    product, square = binary * target, binary * binary
    row = (product @ col) / (square @ col.square() + EPS)
    col = (product.T @ row) / (square.T @ row.square() + EPS)
    return row, col
