"""Block by block through a batch of matrices, on the device (paper section 3.4; oracle: methods/solve.py).

The same steps as methods/solve.py, for L matrices of one shape at once. Between the first block and the last nothing
waits for the device: masks, counts, thresholds and the choice among candidates stay there as tensors of fixed shapes,
and whether all went well is read at the end. A CUDA graph could capture the loop. The error propagation is the
library's GEMM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..block import Block
from ..config import PAPER_METHODS, QuantConfig
from ..errors import FormatError, InputError
from ..methods.factor import Factor
from ..packed import EXPONENT_RANGE, Layout, PackedWeight
from .arb import refine_arb
from .arb_rc import refine_arb_rc
from .configs import column_tile
from .partition import Partition, partition, threshold_fractions
from .rounding import rounding_error
from .scales import Scales


@dataclass(frozen=True, eq=False)
class BlockResult:
    """One block of every matrix of the batch: its partition, its scales in storage type, sum E^2, float64 [L]."""

    partition: Partition
    scales: Scales
    squares: Tensor


def solve_batch(
    weights: Sequence[Tensor], factors: Sequence[Factor], cfg: QuantConfig, S: Sequence[Tensor] | None = None
) -> list[tuple[PackedWeight, float]]:
    """`methods.solve` for matrices of one shape [n, m] on one device. One factor may serve several of them.

    S (float [m, m] each) is required by ARB-X and ignored by the others.

    Raises:
        InputError: no common shape, blocks wider than the kernels take, a scale that does not fit its storage type.
    """
    if not weights or any(w.shape != weights[0].shape or w.device != weights[0].device for w in weights):
        raise InputError("solve_batch: the matrices must have one shape and be on one device")
    if cfg.method not in PAPER_METHODS:
        raise InputError(f"method {cfg.method!r} has no Triton solver")
    n, m = weights[0].shape
    column_tile(min(cfg.block_size, m))
    stacked = torch.stack([w.float() for w in weights])
    exponent = _exponents(stacked)
    work = stacked.mul_(torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), -exponent)[:, None, None])
    work.masked_fill_(torch.stack([f.dead for f in factors])[:, None, :], 0.0)
    moments = None
    if cfg.method == "arb-x":
        if S is None or len(S) != len(weights):
            raise InputError("ARB-X needs S, the mean over sequences of X^T X")
        moments = torch.stack([s.to(work) for s in S])
    blocks = block_loop(work, [f.U for f in factors], cfg, moments)
    squares = torch.stack([b.squares for b in blocks], 1).cpu()  # the first answer that is waited for
    exponents = exponent.tolist()
    results = []
    for i, factor in enumerate(factors):
        _check_finite(squares[i], cfg, (n, m))
        loss = 0.5 * float(squares[i].sum()) * factor.scale * 4.0 ** exponents[i]
        results.append((_pack([_block(b, i, cfg) for b in blocks], cfg, (n, m), exponents[i]), loss))
    return results


def block_loop(work: Tensor, U: Sequence[Tensor], cfg: QuantConfig, S: Tensor | None) -> list[BlockResult]:
    """All blocks of work, float32 [L, n, m], which is used up. U: float32 [m, m] each; S: float32 [L, m, m].

    Nothing here waits for the device.
    """
    m = work.shape[2]
    shared = all(u is U[0] for u in U)
    d = torch.stack([u.diagonal() for u in U])
    fractions = threshold_fractions(cfg, work.device)
    results = []
    for a in range(0, m, cfg.block_size):
        b = min(a + cfg.block_size, m)
        local = None if S is None else S[:, a:b, a:b]
        result, error = _solve_block(work[:, :, a:b], d[:, a:b], cfg, fractions, local)
        if b < m and shared:
            work[:, :, b:] -= error @ U[0][a:b, b:]
        elif b < m:
            work[:, :, b:] -= torch.bmm(error, torch.stack([u[a:b, b:] for u in U]))
        results.append(result)
    return results


def _solve_block(
    weight: Tensor, d: Tensor, cfg: QuantConfig, fractions: Tensor, S: Tensor | None
) -> tuple[BlockResult, Tensor]:
    zones = cfg.salient_groups + cfg.groups
    part = partition(weight, d, cfg, fractions, S)
    if cfg.method == "arb-rc":
        scales = refine_arb_rc(weight, part.zone, zones, cfg.salient_groups, cfg.salient_order, cfg.iters)
    else:
        iters = 0 if cfg.method == "billm" else cfg.iters
        scales = refine_arb(weight, part.zone, zones, cfg.salient_groups, cfg.salient_order, iters, S)
    scales = scales.rounded(torch.float16 if cfg.scale_dtype == "fp16" else torch.float32)
    double = cfg.salient_groups if cfg.salient_order == 2 else 0
    error, squares = rounding_error(weight, d, part.zone, scales, double)
    return BlockResult(part, scales, squares.sum(1)), error


def _exponents(stacked: Tensor) -> Tensor:
    """packed.scale_exponent of every matrix, int32 [L], on its device."""
    largest = stacked.abs().amax((1, 2))
    exponent = (torch.frexp(largest).exponent - 1).clamp(EXPONENT_RANGE.start, EXPONENT_RANGE.stop - 1)
    return torch.where(largest == 0, torch.zeros_like(exponent), exponent)


def _check_finite(squares: Tensor, cfg: QuantConfig, shape: tuple[int, int]) -> None:
    bad = torch.nonzero(~torch.isfinite(squares))
    if len(bad):
        a = int(bad[0]) * cfg.block_size
        raise InputError(
            f"columns {a}..{min(a + cfg.block_size, shape[1]) - 1} of W {list(shape)}: a scale left the range of "
            f"{cfg.scale_dtype} storage; use QuantConfig(scale_dtype='fp32') or a larger damp"
        )


def _block(result: BlockResult, i: int, cfg: QuantConfig) -> Block:
    """Block of matrix i, as PackedWeight stores it."""
    salient, scales = result.partition.salient[i].bool(), result.scales
    row, inner, two = scales.row[i], cfg.salient_groups, cfg.salient_order == 2
    rows = [row[g, o] for g in range(inner) for o in range(cfg.salient_order)]
    col = col2 = None
    if scales.col is not None:
        found = scales.col[i]
        first = found[inner:, 0].clone()
        first[:inner] = torch.where(salient, found[:inner, 0], first[:inner])
        first[inner:] *= ~salient
        col, col2 = first, found[:inner, 1] if two else None
    return Block(
        salient=salient,
        group=result.partition.group[i].long(),
        sign=(scales.planes[i] & 1).bool(),
        second=(scales.planes[i] & 2).bool() if two else None,
        row_scale=torch.stack([*rows, *row[inner:, 0]], 1),
        mean=None if scales.mean is None else scales.mean[i].T.contiguous(),
        col_scale=col,
        col_scale2=col2,
        salient_groups=inner,
    )


def _pack(blocks: list[Block], cfg: QuantConfig, shape: tuple[int, int], exponent: int) -> PackedWeight:
    layout = Layout(
        rows=shape[0],
        cols=shape[1],
        block_size=cfg.block_size,
        groups=cfg.groups,
        salient_groups=cfg.salient_groups,
        salient_order=cfg.salient_order,
        exponent=exponent,
        method=cfg.method,
    )
    try:
        return PackedWeight.from_blocks(blocks, layout)
    except FormatError as error:
        raise InputError(f"W {list(shape)} cannot be stored with {cfg.scale_dtype} scales: {error}") from error
