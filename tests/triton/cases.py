"""Blocks that exercise the solver kernels, and the comparison with methods/."""

from __future__ import annotations

import torch
from torch import Tensor

from arbllm_kernels.methods.binarize import Fit, Zone
from arbllm_kernels.triton_kernels.scales import Scales
from arbllm_kernels.triton_kernels.stack import Stack


def block(*heights: int, k: int, zones: int = 4, salient_zones: int = 2) -> tuple[Tensor, Stack, Tensor]:
    """Weights [R, k] and zones, uint8 [R, k]: about a quarter of the columns of each matrix are salient."""
    weights, of = [], []
    for n in heights:
        weights.append(torch.randn(n, k) * torch.rand(k).add(0.2) * torch.rand(n, 1).add(0.2))
        inner = torch.randint(0, max(1, salient_zones), (n, k))
        outer = salient_zones + torch.randint(0, zones - salient_zones, (n, k))
        of.append(torch.where((torch.rand(k) < 0.25) & (salient_zones > 0), inner, outer).to(torch.uint8))
    return torch.cat(weights), Stack.of(heights, "cpu"), torch.cat(of)


def approximation(fit: Fit, mask: Tensor) -> Tensor:
    """What a fit stands for on its zone, 0 elsewhere."""
    return torch.where(mask, fit.values(), 0.0)


def assert_same_fit(
    found: Scales,
    binarize,
    weight: Tensor,
    stack: Stack,
    zone: Tensor,
    zones: int,
    salient_zones: int,
    order: int,
    iters: int,
    S: Tensor | None = None,
) -> None:
    """As the oracle in float64: the same approximation to 1e-5 of a matrix's largest weight, and the same planes
    wherever a plane matters that much.
    """
    values = found.values(zone, stack).double()
    for i in range(len(stack)):
        rows = stack.span(i)
        own, size = zone[rows], float(weight[rows].abs().max()) or 1.0
        dense, local = torch.zeros_like(own, dtype=torch.float64), None if S is None else S[i].double()
        for z in range(zones):
            mask = own == z
            fit = binarize(Zone(weight[rows].double(), mask, local), order if z < salient_zones else 1, iters)
            dense += approximation(fit, mask)
            assert_same_planes(found.planes[rows], fit, mask, size)
        torch.testing.assert_close(values[rows], dense, rtol=1e-5, atol=1e-5 * size)


def assert_same_planes(found: Tensor, fit: Fit, mask: Tensor, size: float) -> None:
    for o, plane in enumerate(fit.planes):
        rows, columns = fit.row_scale[:, o], fit.col_scale
        step = rows[:, None] if columns is None else torch.outer(rows, columns[o])
        matters = mask & (step.abs() > 1e-4 * size)
        assert torch.equal((found >> o & 1).bool()[matters], plane[matters])
    assert not bool((found[mask] >> len(fit.planes)).any()), "too many planes"
