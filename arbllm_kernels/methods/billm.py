"""BiLLM residual binarization: the starting point of ARB and a baseline of its own.

Source: Huang et al., 2024, as used by the paper (Algorithm 1, func binary; equation 6 for two orders).
"""

from __future__ import annotations

import torch

from .binarize import Fit, Zone, row_mean


def binarize(zone: Zone, order: int, iters: int = 0) -> Fit:
    """Binarize the residual `order` times around its row mean. `iters` is ignored: nothing is refined."""
    residual = zone.weight
    mean = torch.zeros_like(residual[:, 0])
    planes, scales = [], []
    for _ in range(order):
        shift = row_mean(residual, zone.mask)
        centred = residual - shift[:, None]
        scale = row_mean(centred.abs(), zone.mask)
        plane = centred >= 0
        residual = centred - torch.where(plane, scale[:, None], -scale[:, None])
        mean = mean + shift
        planes.append(plane)
        scales.append(scale)
    return Fit(planes, torch.stack(scales, 1), mean=mean)
