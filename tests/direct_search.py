"""The partition search as the reference program runs it: every candidate a full pass over the block. The oracle of
methods/partition.py, slow on purpose. Metric and masks as there; every function mirrors a sentence of the method."""

from __future__ import annotations

import torch
from torch import Tensor

from arbllm_kernels.config import QuantConfig
from arbllm_kernels.methods import arb, billm
from arbllm_kernels.methods.binarize import Zone


def approximate(s: Tensor, mask: Tensor, order: int) -> Tensor:
    """Residual binarization of the masked entries, 0 elsewhere."""
    return torch.where(mask, billm.binarize(Zone(s, mask), order).values(), 0.0)


def squared_error(s: Tensor, parts: list[tuple[Tensor, int]]) -> float:
    residual = s.clone()
    for mask, order in parts:
        residual -= approximate(s, mask, order)
    inside = torch.stack([mask for mask, _ in parts]).any(0)
    return float((residual * inside).square().sum())


def zones(salient: Tensor, group: Tensor, groups: int) -> list[tuple[Tensor, int]]:
    """(mask, order) of every zone of a partition."""
    masks = [(part & (group == g), order) for part, order in ((salient, 2), (~salient, 1)) for g in range(groups)]
    return [(mask.expand_as(group), order) for mask, order in masks]


def salient_errors(s: Tensor, limit: int) -> tuple[Tensor, list[float]]:
    """The column ranking and the error of c = 1 .. limit - 1 salient columns."""
    ranked = s.abs().sum(0).argsort(descending=True, stable=True)[:limit]
    errors = []
    for c in range(1, ranked.numel()):
        salient = torch.zeros(s.shape[1], dtype=torch.bool)
        salient[ranked[:c]] = True
        mask = salient.expand_as(s)
        errors.append(squared_error(s, [(mask, 2), (~mask, 2)]))
    return ranked, errors


def split_errors(s: Tensor, members: Tensor, thresholds: Tensor, order: int) -> list[float]:
    errors = []
    for t in thresholds:
        high = members & (s.abs() >= t)
        errors.append(squared_error(s, [(high, order), (members & ~high, order)]))
    return errors


def output_errors(s: Tensor, members: Tensor, thresholds: Tensor, residual: Tensor, S: Tensor) -> list[float]:
    """ARB-X: tr(R S R^T) of the whole block's residual."""
    errors = []
    for t in thresholds:
        high = members & (s.abs() >= t)
        low = members & ~high
        R = torch.where(members, s - approximate(s, high, 1) - approximate(s, low, 1), residual)
        errors.append(float(torch.trace(R @ S @ R.T)))
    return errors


def reference_quantiles(values: Tensor, number: int) -> Tensor:
    return torch.quantile(values, torch.linspace(0.1, 0.9, number, dtype=values.dtype))


def partition(weight: Tensor, d: Tensor, cfg: QuantConfig, S: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(salient [k], group [n, k]) of one block, step by step."""
    s = (weight / d).square() if cfg.metric == "hessian" else weight
    ranked, errors = salient_errors(s, cfg.max_salient)
    salient = torch.zeros(s.shape[1], dtype=torch.bool)
    if errors:
        salient[ranked[: 1 + int(torch.tensor(errors).argmin())]] = True
    group = torch.zeros_like(s, dtype=torch.int64)

    remaining = salient.expand_as(s)
    for _ in range(cfg.salient_groups - 1):
        thresholds = reference_quantiles(s.abs()[remaining & (s != 0)], cfg.thresholds)
        t = thresholds[int(torch.tensor(split_errors(s, remaining, thresholds, 2)).argmin())]
        remaining = remaining & (s.abs() < t)
        group += remaining

    residual = torch.zeros_like(s)
    for g in range(cfg.salient_groups):
        mask = salient & (group == g)
        residual = torch.where(mask, s - arb.binarize(Zone(s, mask), 2, cfg.iters).values(), residual)
    remaining = (~salient).expand_as(s)
    for _ in range(cfg.groups - 1):
        thresholds = reference_quantiles((s.abs() * remaining).flatten(), cfg.thresholds)
        if S is None:
            found = split_errors(s, remaining, thresholds, 1)
        else:
            found = output_errors(s, remaining, thresholds, residual, S)
        t = thresholds[int(torch.tensor(found).argmin())]
        high = remaining & (s.abs() >= t)
        residual = torch.where(high, s - approximate(s, high, 1), residual)
        remaining = remaining & ~high
        group += remaining
    return salient, group
