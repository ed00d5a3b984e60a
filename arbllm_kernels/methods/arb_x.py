"""ARB-X: refinement against the layer's outputs instead of its weights (paper section 3.2, equations 9-11).

With the binary matrices held, tr(R S R^T) is quadratic in the mean and the scales of each row, and all it needs is how
the row's basis (1, B_1, B_2 on the zone) meets itself and W in S. That is computed once, [n, 3, 3] and [n, 3]; the
iterations then touch a few numbers per row. `[n, k, k]` is never built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import arb
from .binarize import Fit, Zone

EPS = 1e-10


def binarize(zone: Zone, order: int, iters: int) -> Fit:
    """`iters` iterations of ARB, then `iters` of equation 11 with B held."""
    return refine(zone, arb.binarize(zone, order, iters), iters)


def refine(zone: Zone, fit: Fit, iters: int) -> Fit:
    """Equation 11: `iters` rounds of mean and scales against the layer's outputs, starting from a fit with a mean."""
    if zone.S is None:
        raise TypeError("ARB-X needs S, the second moment of the inputs")
    if fit.mean is None:
        raise TypeError("ARB-X refines a fit that has a mean")
    mask = zone.mask.to(zone.weight.dtype)
    basis = torch.stack([mask, *(zone.signed(plane) for plane in fit.planes)], 1)  # [n, 1 + order, k]
    products = basis @ zone.S
    target = (products @ (zone.weight * mask)[..., None])[..., 0]
    coefficients = torch.cat([fit.mean[:, None], fit.row_scale], 1)
    coefficients = alternate(target, products @ basis.transpose(1, 2), coefficients, iters)
    return Fit(fit.planes, coefficients[:, 1:], mean=coefficients[:, 0])


def alternate(target: Tensor, gram: Tensor, coefficients: Tensor, iters: int) -> Tensor:
    """Mean, alpha_1, alpha_2 [n, 1 + order] in turn, each exact given the others.

    target: [n, 1 + order], how the weights meet the basis. gram: [n, 1 + order, 1 + order], how the basis meets itself.
    """
    coefficients = coefficients.clone()
    for _ in range(iters):
        for i in range(coefficients.shape[1]):
            others = (gram[:, i] * coefficients).sum(1) - gram[:, i, i] * coefficients[:, i]
            coefficients[:, i] = (target[:, i] - others) / (gram[:, i, i] + EPS)
    return coefficients
