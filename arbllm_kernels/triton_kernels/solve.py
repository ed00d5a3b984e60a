"""Block by block through a batch of matrices, on the device (paper section 3.4; oracle: methods/solve.py).

The same steps as methods/solve.py, for L matrices at once, whatever their shapes. The blocks that begin at one column
are one stack (stack.py); a matrix whose columns are used up drops out, and where last blocks are shorter, each width is
a stack of its own. Between the first block and the last nothing waits for the device: masks, counts, thresholds and the
choice among candidates stay there as tensors of fixed shapes, and whether all went well is read at the end. A CUDA
graph could capture the loop. The error propagation is the library's GEMM, one per matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..block import Block
from ..config import PAPER_METHODS, QuantConfig
from ..errors import FormatError, InputError
from ..methods.factor import Factor
from ..packed import EXPONENT_RANGE, Layout, PackedWeight
from .arb import refine_arb
from .arb_rc import refine_arb_rc
from .configs import ROUNDING, column_tile
from .partition import Partition, partition, threshold_fractions
from .rounding import rounding_error
from .scales import Scales
from .stack import Stack

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Step:
    """Columns a to b of the matrices from `first` to before `last`, one below the other."""

    a: int
    b: int
    first: int
    last: int
    stack: Stack


@dataclass(frozen=True, eq=False)
class BlockResult:
    """One block of every matrix of a step: its partition, its scales in storage type, sum E^2 as rounding.py has it."""

    step: Step
    partition: Partition
    scales: Scales
    squares: Tensor


def solve_batch(
    weights: Sequence[Tensor], factors: Sequence[Factor], cfg: QuantConfig, S: Sequence[Tensor] | None = None
) -> list[tuple[PackedWeight, float]]:
    """`methods.solve` for matrices [n, m] of any shapes on one device. One factor may serve several of them.

    S (float [m, m] each) is required by ARB-X and ignored by the others. What is found for a matrix has the same bits
    whatever else is in the batch.

    Raises:
        InputError: several devices, blocks wider than the kernels take, a scale that does not fit its storage type.
    """
    if not weights or any(w.device != weights[0].device for w in weights):
        raise InputError("solve_batch: the matrices must be on one device")
    if cfg.method not in PAPER_METHODS:
        raise InputError(f"method {cfg.method!r} has no Triton solver")
    order = sorted(range(len(weights)), key=lambda i: (-weights[i].shape[1], weights[i].shape[0]))
    weights, factors = [weights[i] for i in order], [factors[i] for i in order]
    column_tile(min(cfg.block_size, weights[0].shape[1]))
    exponent = _exponents(weights)
    powers = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), -exponent)
    work = [w.float() * power for w, power in zip(weights, powers, strict=True)]
    for w, factor in zip(work, factors, strict=True):
        w.masked_fill_(factor.dead, 0.0)
    moments = None
    if cfg.method == "arb-x":
        if S is None or len(S) != len(weights):
            raise InputError("ARB-X needs S, the mean over sequences of X^T X")
        moments = [S[i].to(work[0]) for i in order]
    steps = block_steps([(w.shape[0], w.shape[1]) for w in weights], cfg.block_size, weights[0].device)
    results = block_loop(steps, work, [f.U for f in factors], cfg, moments)
    squares = _squares(results, len(weights))  # the first answer that is waited for
    exponents = exponent.tolist()
    found = []
    for i, (w, factor) in enumerate(zip(weights, factors, strict=True)):
        shape = (w.shape[0], w.shape[1])
        _check_finite(squares[i], cfg, shape)
        loss = 0.5 * sum(squares[i]) * factor.scale * 4.0 ** exponents[i]
        blocks = [_block(r, i - r.step.first, cfg) for r in results if r.step.first <= i < r.step.last]
        found.append((_pack(blocks, cfg, shape, exponents[i]), loss))
    return [found[order.index(i)] for i in range(len(order))]


def block_steps(shapes: Sequence[Shape], block_size: int, device: torch.device | str) -> list[Step]:
    """The steps through matrices of these shapes [n, m], which must be sorted by falling m. May wait for the device."""
    stacks: dict[tuple[int, ...], Stack] = {}
    steps = []
    for a in range(0, shapes[0][1], block_size):
        first = 0
        for b, same in groupby(((min(a + block_size, m), n) for n, m in shapes if m > a), itemgetter(0)):
            heights = tuple(n for _, n in same)
            if heights not in stacks:
                stacks[heights] = Stack.of(heights, device)
            steps.append(Step(a, b, first, first + len(heights), stacks[heights]))
            first += len(heights)
    return steps


def block_loop(
    steps: Sequence[Step], work: Sequence[Tensor], U: Sequence[Tensor], cfg: QuantConfig, S: Sequence[Tensor] | None
) -> list[BlockResult]:
    """All blocks of work, float32 [n, m] each, which is used up. U and S: float32 [m, m] each.

    Nothing here waits for the device.
    """
    d = pad_sequence([u.diagonal() for u in U], batch_first=True)
    fractions = threshold_fractions(cfg, d.device)
    results = []
    for step in steps:
        a, b, some = step.a, step.b, slice(step.first, step.last)
        block = torch.cat([w[:, a:b] for w in work[some]])
        local = None if S is None else torch.stack([s[a:b, a:b] for s in S[some]])
        result, error = _solve_block(step, block, d[some, a:b], cfg, fractions, local)
        for w, u, e in zip(work[some], U[some], error.split(step.stack.heights), strict=True):
            if b < w.shape[1]:
                w[:, b:].addmm_(e, u[a:b, b:], alpha=-1)
        results.append(result)
    return results


def _solve_block(
    step: Step, weight: Tensor, d: Tensor, cfg: QuantConfig, fractions: Tensor, S: Tensor | None
) -> tuple[BlockResult, Tensor]:
    zones, stack = cfg.salient_groups + cfg.groups, step.stack
    part = partition(weight, stack, d, cfg, fractions, S)
    if cfg.method == "arb-rc":
        scales = refine_arb_rc(weight, stack, part.zone, zones, cfg.salient_groups, cfg.salient_order, cfg.iters)
    else:
        iters = 0 if cfg.method == "billm" else cfg.iters
        scales = refine_arb(weight, stack, part.zone, zones, cfg.salient_groups, cfg.salient_order, iters, S)
    scales = scales.rounded(torch.float16 if cfg.scale_dtype == "fp16" else torch.float32)
    double = cfg.salient_groups if cfg.salient_order == 2 else 0
    error, squares = rounding_error(weight, stack, d, part.zone, scales, double)
    return BlockResult(step, part, scales, squares), error


def _exponents(weights: Sequence[Tensor]) -> Tensor:
    """packed.scale_exponent of every matrix, int32 [L], on its device."""
    largest = torch.stack([w.abs().amax() for w in weights]).float()
    exponent = (torch.frexp(largest).exponent - 1).clamp(EXPONENT_RANGE.start, EXPONENT_RANGE.stop - 1)
    return torch.where(largest == 0, torch.zeros_like(exponent), exponent)


def _squares(results: Sequence[BlockResult], matrices: int) -> list[list[float]]:
    """By matrix: sum E^2 of each of its blocks. Each adds up its own parts, so that others change no bit of it."""
    found: list[list[float]] = [[] for _ in range(matrices)]
    sizes = [r.squares.numel() for r in results]
    for r, flat in zip(results, torch.cat([r.squares.flatten() for r in results]).cpu().split(sizes), strict=True):
        for i, (n, parts) in enumerate(zip(r.step.stack.heights, flat.view(r.squares.shape), strict=True)):
            found[r.step.first + i].append(float(parts[: ROUNDING.parts(n)[0]].sum()))
    return found


def _check_finite(squares: Sequence[float], cfg: QuantConfig, shape: Shape) -> None:
    a = next((i * cfg.block_size for i, square in enumerate(squares) if not math.isfinite(square)), None)
    if a is not None:
        raise InputError(
            f"columns {a}..{min(a + cfg.block_size, shape[1]) - 1} of W {list(shape)}: a scale left the range of "
            f"{cfg.scale_dtype} storage; use QuantConfig(scale_dtype='fp32') or a larger damp"
        )


def _block(result: BlockResult, i: int, cfg: QuantConfig) -> Block:
    """Block of matrix i of the step, as PackedWeight stores it."""
    salient, scales, rows = result.partition.salient[i].bool(), result.scales, result.step.stack.span(i)
    row, inner, two = scales.row[:, :, rows], cfg.salient_groups, cfg.salient_order == 2
    double_rows = [row[g, o] for g in range(inner) for o in range(cfg.salient_order)]
    col = col2 = None
    if scales.col is not None:
        found = scales.col[i]
        first = found[inner:, 0].clone()
        first[:inner] = torch.where(salient, found[:inner, 0], first[:inner])
        first[inner:] *= ~salient
        col, col2 = first, found[:inner, 1] if two else None
    return Block(
        salient=salient,
        group=result.partition.group[rows].long(),
        sign=(scales.planes[rows] & 1).bool(),
        second=(scales.planes[rows] & 2).bool() if two else None,
        row_scale=torch.stack([*double_rows, *row[inner:, 0]], 1),
        mean=None if scales.mean is None else scales.mean[:, rows].T.contiguous(),
        col_scale=col,
        col_scale2=col2,
        salient_groups=inner,
    )


def _pack(blocks: list[Block], cfg: QuantConfig, shape: Shape, exponent: int) -> PackedWeight:
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
