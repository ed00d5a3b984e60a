"""GPTQ (Frantar et al. 2022): round to nearest column by column, each column's error moves the columns after it.

Asymmetric min-max grids in groups of columns, taken when a group's turn comes; with an ordered factor, groups are of
columns that follow each other in that order. Only simulated, as rtn.py; the order is counted where there is one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import Factor
from .rtn import Simulated, grid, nearest, stored_bits


def gptq(W: Tensor, factor: Factor, bits: int, group: int = 128) -> Simulated:
    """Quantize a matrix [n, m]."""
    n, m = W.shape
    order = torch.arange(m, device=W.device) if factor.order is None else factor.order
    work = W.float()[:, order]
    work[:, factor.dead[order]] = 0
    result, d = torch.empty_like(work), factor.U.diagonal()
    for a in range(0, m, group):
        b = min(a + group, m)
        scale, low = grid(work[:, a:b], bits)
        errors = torch.empty_like(work[:, a:b])
        for j in range(a, b):
            result[:, j] = nearest(work[:, j], scale, low, bits)
            errors[:, j - a] = (work[:, j] - result[:, j]) / d[j]
            work[:, j + 1 : b] -= errors[:, j - a, None] * factor.U[j, j + 1 : b]
        work[:, b:] -= errors @ factor.U[a:b, b:]
    columns = 0.0 if factor.order is None else 16 / n
    return Simulated(result[:, order.argsort()], stored_bits(m, bits, group) + columns)
