"""The partition search of a stack of blocks, without a word to the host (paper section 3.4).

The oracle is methods/partition.py.

Per split: write the members' |s|, sort them, take the candidate thresholds, judge all of them, act on the best. The
answers stay on the device as bytes per column and per weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import QuantConfig
from .arb import refine_arb
from .choose import candidate_thresholds, choose_columns, choose_split
from .output_search import output_gains
from .search import column_gains, split_gains
from .sensitivity import sensitivities
from .stack import Stack


@dataclass(frozen=True, eq=False)
class Partition:
    """salient: uint8 [L, k]. group: uint8 [R, k], 0 holds the largest |s|. zone: as group, as Layout counts."""

    salient: Tensor
    group: Tensor
    zone: Tensor


def partition(
    weight: Tensor, stack: Stack, d: Tensor, cfg: QuantConfig, fractions: Tensor, S: Tensor | None = None
) -> Partition:
    """Search the partition of L blocks. weight: float32 [R, k]; d: [L, k]; fractions: see `threshold_fractions`.

    S: float32 [L, k, k], for ARB-X only.
    """
    s, rank = sensitivities(weight, stack, d, cfg.metric == "hessian")
    k = s.shape[1]
    candidates = min(cfg.max_salient, k) - 1
    if candidates:
        salient = choose_columns(column_gains(s, stack, rank, candidates), stack, rank)
    else:
        salient = torch.zeros(len(stack), k, dtype=torch.uint8, device=s.device)
    group = torch.zeros_like(s, dtype=torch.uint8)
    for level in range(cfg.salient_groups - 1):
        thresholds = candidate_thresholds(s, stack, salient, group, fractions, 1, level, nonzero=True)
        gains = split_gains(s, stack, salient, group, thresholds, 1, level, order=2)
        choose_split(gains, stack, thresholds, s, salient, group, 1, level)
    inside = salient[stack.owner]  # uint8 [R, k]
    residual = None if S is None or cfg.groups == 1 else _salient_residual(s, stack, inside, group, cfg)
    for level in range(cfg.groups - 1):
        thresholds = candidate_thresholds(s, stack, salient, group, fractions, 0, level, nonzero=False)
        if S is None or residual is None:
            gains = split_gains(s, stack, salient, group, thresholds, 0, level, order=1)
        else:
            gains = output_gains(s, stack, salient, group, thresholds, level, residual, S)
        choose_split(gains, stack, thresholds, s, salient, group, 0, level)
        if residual is not None and level < cfg.groups - 2:
            settled = (inside == 0) & (group == level)
            residual = torch.where(settled, s - _fit(s, stack, (~settled).to(torch.uint8), 1, 1, 0), residual)
    return Partition(salient, group, group.add(1 - inside, alpha=cfg.salient_groups))


def _salient_residual(s: Tensor, stack: Stack, inside: Tensor, group: Tensor, cfg: QuantConfig) -> Tensor:
    """What ARB of order 2 leaves of s on the salient columns, 0 elsewhere: float32 [R, k]."""
    salient = inside != 0
    zone = torch.where(salient, group, cfg.salient_groups)
    return torch.where(salient, s - _fit(s, stack, zone, cfg.salient_groups, 2, cfg.iters), 0.0)


def _fit(s: Tensor, stack: Stack, zone: Tensor, zones: int, order: int, iters: int) -> Tensor:
    """The approximation of s by ARB on the zones below `zones`; meaningless outside them."""
    return refine_arb(s, stack, zone, zones, zones, order, iters).values(zone.clamp(max=zones - 1), stack)


def threshold_fractions(cfg: QuantConfig, device: torch.device) -> Tensor:
    """float64 [q]: the quantiles that are tried as thresholds."""
    return torch.linspace(0.1, 0.9, cfg.thresholds, dtype=torch.float64, device=device)
