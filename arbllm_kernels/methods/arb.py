"""ARB: alternating refinement of mean, row scale and binary matrix (paper section 3.1, Algorithm 1, equations 3-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import billm
from .binarize import Fit, Zone, nearest_of_four, row_mean

EPS = 1e-8


def binarize(zone: Zone, order: int, iters: int) -> Fit:
    """Refine BiLLM's binarization `iters` times; with two planes each entry takes the nearest of four levels."""
    fit = billm.binarize(zone, order)
    for _ in range(iters):
        fit = _refine_one(zone, fit) if order == 1 else _refine_two(zone, fit)
    return fit


def _refine_one(zone: Zone, fit: Fit) -> Fit:
    weight, mean = zone.weight, _mean(fit)
    mean = mean + row_mean(weight - fit.values(), zone.mask)
    centred = weight - mean[:, None]
    scale = _row_scale(zone.signed(fit.planes[0]), centred)
    return Fit([centred >= 0], scale[:, None], mean=mean)


def _refine_two(zone: Zone, fit: Fit) -> Fit:
    weight, mean = zone.weight, _mean(fit)
    mean = mean + row_mean(weight - fit.values(), zone.mask)
    centred = weight - mean[:, None]
    b1, b2 = (zone.signed(plane) for plane in fit.planes)
    scale1 = _row_scale(b1, centred - fit.row_scale[:, 1:] * b2)
    scale2 = _row_scale(b2, centred - scale1[:, None] * b1)
    planes = nearest_of_four(centred, scale1[:, None], scale2[:, None])
    return Fit(planes, torch.stack([scale1, scale2], 1), mean=mean)


def _row_scale(binary: Tensor, target: Tensor) -> Tensor:
    """The scale alpha [n] that brings alpha * B nearest to the target (refine_alpha of Algorithm 1)."""
    return (binary * target).sum(1) / ((binary * binary).sum(1) + EPS)


def _mean(fit: Fit) -> Tensor:
    if fit.mean is None:
        raise TypeError("ARB refines a fit that has a mean")
    return fit.mean
