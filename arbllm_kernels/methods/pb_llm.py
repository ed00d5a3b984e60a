"""PB-LLM (Shang et al. 2023): the most salient tenth of the weights in 8 bits, a sign for each of the others.

Block by block of columns, with GPTQ's error feedback: the salient weights are those of largest w^2 / d^2, wherever in
the block they are, on an 8-bit grid per row; the others get the row's mean magnitude and their sign. Only simulated, as
rtn.py. The 1.7 bits that the paper names leave out which weights are salient: that takes a bit per weight more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import Factor
from .rtn import Simulated, grid, nearest

HIGH = 8


def pb_llm(W: Tensor, factor: Factor, share: float = 0.1, block: int = 128) -> Simulated:
    """Quantize a matrix [n, m]; `share` of each block's weights are salient. Columns come in their own order."""
    m = W.shape[1]
    work, d = W.float().clone(), factor.U.diagonal()
    work[:, factor.dead] = 0
    result = torch.empty_like(work)
    kept = 0
    for a in range(0, m, block):
        b = min(a + block, m)
        salience = (work[:, a:b] / d[a:b]).square().flatten()
        salient = torch.zeros_like(salience, dtype=torch.bool)
        salient[salience.topk(round(share * len(salience))).indices] = True
        salient = salient.view(-1, b - a)
        kept += int(salient.sum())
        scale, low = grid(work[:, a:b].where(salient, 0.0), HIGH)
        magnitude = work[:, a:b].abs().where(~salient, 0.0).sum(1) / (~salient).sum(1).clamp(min=1)
        magnitude = magnitude.half().float()
        errors = torch.empty_like(work[:, a:b])
        for j in range(a, b):
            w = work[:, j]
            low_part = torch.where(w < 0, -magnitude, magnitude)
            result[:, j] = torch.where(salient[:, j - a], nearest(w, scale, low, HIGH), low_part)
            errors[:, j - a] = (w - result[:, j]) / d[j]
            work[:, j + 1 : b] -= errors[:, j - a, None] * factor.U[j, j + 1 : b]
        work[:, b:] -= errors @ factor.U[a:b, b:]
    salient_share = kept / W.numel()
    scales = (16 + 16 + HIGH) * -(-m // block) / m
    return Simulated(result, 1 + HIGH * salient_share + (1 - salient_share) + scales)
