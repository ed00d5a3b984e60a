"""ARB-X: refinement against the layer's outputs instead of its weights (paper section 3.2, equations 9-11).

With the binary matrices held, tr(R S R^T) is quadratic in the mean and the scales of each row, and all it needs is how
the row's vectors (1, W, B_1, B_2 on the zone) meet in S. That Gram matrix is computed once, [n, 4, 4]; the iterations
then touch a few numbers per row. `[n, k, k]` is never built.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import arb
from .binarize import Fit, Zone

EPS = 1e-10
Alternate = Callable[[Tensor, Tensor, int], Tensor]  # gram, coefficients, iterations -> coefficients


def binarize(zone: Zone, order: int, iters: int) -> Fit:
    """`iters` iterations of ARB, then `iters` of equation 11 with B held."""
    return refine(zone, arb.binarize(zone, order, iters), iters, alternate)


def refine(zone: Zone, fit: Fit, iters: int, alternate: Alternate) -> Fit:
    """Equation 11: `iters` rounds of mean and scales against the layer's outputs, starting from a fit with a mean."""
    if zone.S is None:
        raise TypeError("ARB-X needs S, the second moment of the inputs")
    mask = zone.mask.to(zone.weight.dtype)
    binary = [zone.signed(plane) for plane in fit.planes]
    vectors = torch.stack([zone.weight * mask, mask, *binary], 1)  # [n, 2 + order, k]
    gram = (vectors @ zone.S) @ vectors.transpose(1, 2)
    if fit.mean is None:
        raise TypeError("ARB-X refines a fit that has a mean")
    coefficients = alternate(gram, torch.cat([fit.mean[:, None], fit.row_scale], 1), iters)
    return Fit(fit.planes, coefficients[:, 1:], mean=coefficients[:, 0])


def alternate(gram: Tensor, coefficients: Tensor, iters: int) -> Tensor:
    """Mean, alpha_1, alpha_2 [n, 1 + order] in turn, each exact given the others. gram: the weights, then the basis."""
    target, basis = gram[:, 0, 1:], gram[:, 1:, 1:]  # basis: the mean's indicator, then the planes
    coefficients = coefficients.clone()
    for _ in range(iters):
        for i in range(coefficients.shape[1]):
            others = (basis[:, i] * coefficients).sum(1) - basis[:, i, i] * coefficients[:, i]
            coefficients[:, i] = (target[:, i] - others) / (basis[:, i, i] + EPS)
    return coefficients
