"""Blocks that exercise the solver kernels, and the comparison with methods/."""

from __future__ import annotations

import torch
from torch import Tensor

from arbllm_kernels.methods.binarize import Fit, Zone
from arbllm_kernels.triton_kernels.scales import Scales


def block(matrices: int, n: int, k: int, *, zones: int = 4, salient_zones: int = 2) -> tuple[Tensor, Tensor]:
    """Weights [L, n, k] and zones, uint8 [L, n, k]: about a quarter of the columns are salient."""
    weight = torch.randn(matrices, n, k) * torch.rand(matrices, 1, k).add(0.2) * torch.rand(matrices, n, 1).add(0.2)
    salient = torch.rand(matrices, 1, k) < 0.25
    inner = torch.randint(0, max(1, salient_zones), (matrices, n, k))
    outer = salient_zones + torch.randint(0, zones - salient_zones, (matrices, n, k))
    return weight, torch.where(salient & (salient_zones > 0), inner, outer).to(torch.uint8)


def approximation(fit: Fit, mask: Tensor) -> Tensor:
    """What a fit stands for on its zone, 0 elsewhere."""
    return torch.where(mask, fit.values(), 0.0)


def expected(binarize, weight: Tensor, zone: Tensor, zones: int, salient_zones: int, order: int, iters: int, S=None):
    """The oracle's approximation of every matrix in float64, [L, n, k], and its fits, by (matrix, zone)."""
    total, fits = torch.zeros_like(weight, dtype=torch.float64), {}
    for i, w in enumerate(weight.double()):
        for z in range(zones):
            mask = zone[i] == z
            local = None if S is None else S[i].double()
            fit = binarize(Zone(w, mask, local), order if z < salient_zones else 1, iters)
            fits[i, z] = fit
            total[i] += approximation(fit, mask)
    return total, fits


def assert_same_fit(
    found: Scales, zone: Tensor, weight: Tensor, dense: Tensor, fits: dict[tuple[int, int], Fit]
) -> None:
    """The same approximation to 1e-5 of the largest weight, the same planes wherever a plane matters that much."""
    size = float(weight.abs().max()) or 1.0
    torch.testing.assert_close(found.values(zone).double(), dense, rtol=1e-5, atol=1e-5 * size)
    for (i, z), fit in fits.items():
        mask = zone[i] == z
        for o, plane in enumerate(fit.planes):
            step = (
                fit.row_scale[:, o : o + 1]
                if fit.col_scale is None
                else torch.outer(fit.row_scale[:, o], fit.col_scale[o])
            )
            matters = mask & (step.abs() > 1e-4 * size)
            assert torch.equal((found.planes[i] >> o & 1).bool()[matters], plane[matters]), f"matrix {i}, zone {z}"
        assert not bool((found.planes[i][mask] >> len(fit.planes)).any()), f"matrix {i}, zone {z}: too many planes"
