"""Block by block through a matrix: partition, binarize each zone, round, propagate the error (paper section 3.4, GPTQ).

The error that is propagated is the error that ships: Q is what the packed block dequantizes to, with its scales already
rounded to their storage type.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..block import Block
from ..config import QuantConfig
from ..errors import FormatError, InputError
from ..gpu import on_device, solver_is_triton
from ..packed import Layout, PackedWeight, scale_exponent
from . import arb, arb_rc, arb_x, billm, levels
from .binarize import Binarizer, Fit, Solved, Zone
from .factor import Factor, hessian_factor
from .partition import Partition, partition

BINARIZERS: dict[str, Binarizer] = {
    "billm": billm.binarize,
    "arb": arb.binarize,
    "arb-x": arb_x.binarize,
    "arb-rc": arb_rc.binarize,
}
STORAGE = {"fp16": torch.float16, "fp32": torch.float32}
BACKENDS = ("auto", "native", "torch", "triton")
TOGETHER = 1 << 28  # weights that are solved together at most: a layer of LLaMA-7B; larger ones fill a GPU by parts


@dataclass(frozen=True)
class Backend:
    """Who does the work: the partition search and the binarizer of each method, and the inner loops of "arb-levels"."""

    partition: Callable[[Tensor, Tensor, QuantConfig, Tensor | None], Partition]
    binarizers: Mapping[str, Binarizer]
    levels: levels.Engine


TORCH = Backend(partition, BINARIZERS, levels.TORCH)


def quantize_weight(
    W: Tensor, H: Tensor, cfg: QuantConfig | None = None, S: Tensor | None = None, *, backend: str = "auto"
) -> PackedWeight:
    """Binarize one weight matrix.

    Args:
        W: [n, m] (out_features x in_features), any float dtype; not changed.
        H: [m, m], the raw (undamped) Hessian (2/N) sum x x^T of the layer's inputs.
        cfg: the method and its knobs; default ARB-RC + CGB.
        S: [m, m], mean over sequences of X^T X, read by ARB-X only; default H / 2, which is the same thing.
        backend: "torch" for the plain path of this folder, "native" for csrc, "triton" for the GPU kernels; "auto" for
            csrc where W is on the CPU and Triton where it is on a CUDA device and fits (see gpu.py). All find the same
            partition, and the same scales to rounding; what ties to rounding may go either way.

    Returns:
        The packed weight, on the device of W.

    Raises:
        InputError: wrong type, shape or dtype, NaN or Inf, H not positive definite, a backend that cannot run here.
    """
    cfg = QuantConfig() if cfg is None else cfg
    if not isinstance(cfg, QuantConfig):
        raise InputError(f"cfg is {type(cfg).__name__}, must be a QuantConfig, such as QuantConfig(method='arb-rc')")
    _check_matrix("W", W)
    _check_square("H", H, W.shape[1])
    factor = hessian_factor(H.to(W.device), cfg.damp, ordered=cfg.has_levels)
    return solve(W, factor, cfg, H / 2 if S is None else S, backend=backend)[0]


def solve(
    W: Tensor, factor: Factor, cfg: QuantConfig, S: Tensor | None = None, *, backend: str = "auto"
) -> tuple[PackedWeight, float]:
    """`quantize_weight` with a factorized Hessian; also returns the proxy loss 1/2 sum E^2.

    S (undamped, float [m, m]) is required by ARB-X and ignored by the others. Autocast is off inside: every step
    counts on the dtype it asks for.
    """
    return solve_all([W], [factor], cfg, [S], backend=backend)[0]


@torch.no_grad()
def solve_all(
    weights: Sequence[Tensor],
    factors: Sequence[Factor],
    cfg: QuantConfig,
    S: Sequence[Tensor | None],
    *,
    backend: str = "auto",
) -> list[tuple[PackedWeight, float]]:
    """`solve` for matrices on one device, each with its factor and S; on a GPU in the same launches."""
    for W, factor, moment in zip(weights, factors, S, strict=True):
        _check_matrix("W", W)
        _check_inputs(W, factor, cfg, moment)
    device, block = weights[0].device, min(cfg.block_size, max(W.shape[1] for W in weights))
    with torch.autocast(device.type, enabled=False), on_device(device):
        if backend in BACKENDS and not cfg.has_levels and solver_is_triton(backend, device, block):
            from ..triton_kernels.solve import solve_batch  # here, because it imports this folder, and Triton

            return solve_batch(weights, factors, cfg, [s for s in S if s is not None])
        return [_solve(W, f, cfg, s, backend) for W, f, s in zip(weights, factors, S, strict=True)]


def solves_together(device: torch.device, cfg: QuantConfig) -> bool:
    """Whether `solve_all` gains from more than one matrix: where their steps share launches."""
    return not cfg.has_levels and solver_is_triton("auto", device, cfg.block_size)


def solved_together(weights: Sequence[Tensor], cfg: QuantConfig) -> list[list[int]]:
    """Which of these matrices to give to `solve_all` together, as positions: each alone, or TOGETHER weights at most.

    What is solved together is in memory together: a copy in float32, and three bytes of bits and groups per weight.
    """
    groups: list[list[int]] = []
    room = 0
    for i, W in enumerate(weights):
        if not groups or W.numel() > room or not solves_together(W.device, cfg):
            groups.append([])
            room = TOGETHER
        groups[-1].append(i)
        room -= W.numel()
    return groups


def _check_inputs(W: Tensor, factor: Factor, cfg: QuantConfig, S: Tensor | None) -> None:
    m = W.shape[1]
    if len(factor.U) != m:
        raise InputError(f"W {list(W.shape)} has {m} inputs but the Hessian is {len(factor.U)} x {len(factor.U)}")
    if cfg.method == "arb-x":
        if S is None:
            raise InputError("ARB-X needs S, the mean over sequences of X^T X")
        _check_square("S", S, m)


def _solve(W: Tensor, factor: Factor, cfg: QuantConfig, S: Tensor | None, backend: str) -> tuple[PackedWeight, float]:
    n, m = W.shape
    worker = _backend(backend, W.device)
    exponent = scale_exponent(float(W.abs().max()))
    work = W.float() * 2.0**-exponent  # powers of two: exact, and every epsilon below sees weights of magnitude 1
    work[:, factor.dead] = 0
    if cfg.has_levels:
        solved = levels.solve(work, factor, cfg, STORAGE[cfg.scale_dtype], worker.levels)
    else:
        solved = _block_by_block(work, factor, cfg, S, worker)
    layout = Layout(
        rows=n,
        cols=m,
        block_size=solved.block_size,
        groups=cfg.groups,
        salient_groups=cfg.salient_groups,
        salient_order=cfg.salient_order,
        exponent=exponent,
        method=cfg.method,
        shared_columns=cfg.has_levels,
    )
    try:
        packed = PackedWeight.from_blocks(solved.blocks, layout, solved.columns)
    except FormatError as error:
        raise InputError(f"W {list(W.shape)} cannot be stored with {cfg.scale_dtype} scales: {error}") from error
    return packed, 0.5 * solved.error * factor.scale * 4.0**exponent


def _block_by_block(work: Tensor, factor: Factor, cfg: QuantConfig, S: Tensor | None, worker: Backend) -> Solved:
    """The paper's way: every block is binarized as a whole, its error moves the columns after it. Changes `work`."""
    n, m = work.shape
    d = factor.U.diagonal()
    blocks, loss = [], 0.0
    for a in range(0, m, cfg.block_size):
        b = min(a + cfg.block_size, m)
        local = None if S is None or cfg.method != "arb-x" else S[a:b, a:b].to(work)
        block = binarize_block(work[:, a:b], d[a:b], cfg, local, worker).rounded(STORAGE[cfg.scale_dtype])
        error = (work[:, a:b] - block.values()) / d[a:b]
        squared = float(error.square().sum())
        if not math.isfinite(squared):
            raise InputError(
                f"columns {a}..{b - 1} of W [{n}, {m}]: a scale left the range of {cfg.scale_dtype} storage; "
                "use QuantConfig(scale_dtype='fp32') or a larger damp"
            )
        _propagate(work[:, b:], error, factor.U[a:b, b:])
        loss += squared
        blocks.append(block)
    return Solved(blocks, loss, cfg.block_size)


def _propagate(after: Tensor, error: Tensor, U: Tensor) -> None:
    """Let the columns after a block make up for its error, as far as they can (GPTQ)."""
    after.addmm_(error, U, alpha=-1)


def _backend(backend: str, device: torch.device) -> Backend:
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r}: must be one of {', '.join(BACKENDS)}")
    if solver_is_triton(backend, device, 0):
        from ..triton_kernels.levels import engine  # here, because it imports this folder, and Triton

        return dataclasses.replace(TORCH, levels=engine())
    if backend == "torch" or (backend == "auto" and device.type != "cpu"):
        return TORCH
    if device.type != "cpu":
        raise InputError(f"backend 'native' runs on the CPU and W is on {device}: move it or use backend='torch'")
    from .. import native_solver  # here, because it imports this folder

    return Backend(native_solver.partition, native_solver.BINARIZERS, native_solver.LEVELS)


def binarize_block(
    weight: Tensor, d: Tensor, cfg: QuantConfig, S: Tensor | None = None, worker: Backend = TORCH
) -> Block:
    """Partition one block [n, k] and binarize every zone of it on its own; scales are float32 yet."""
    zones = worker.partition(weight, d, cfg, S)
    binarize = worker.binarizers[cfg.method]
    result = _BlockUnderWork(weight, zones, cfg)
    for salient in (True, False):
        columns = torch.nonzero(zones.salient == salient)[:, 0]
        if columns.numel() == 0:
            continue
        part, group = weight.index_select(1, columns), zones.group.index_select(1, columns)
        local = None if S is None else S[columns][:, columns]
        order = cfg.salient_order if salient else 1
        planes = torch.zeros(order, *part.shape, dtype=torch.bool, device=part.device)
        for g in range(cfg.salient_groups if salient else cfg.groups):
            mask = group == g
            fit = binarize(Zone(part, mask, local), order, cfg.iters)
            for all_zones, plane in zip(planes, fit.planes, strict=True):
                all_zones |= plane & mask
            result.put_scales(salient, g, columns, fit)
        result.put_planes(columns, planes)
    return result.block()


class _BlockUnderWork:
    """Collects the fits of a block's zones into the arrays of a Block."""

    def __init__(self, weight: Tensor, zones: Partition, cfg: QuantConfig) -> None:
        n, k = weight.shape
        self._cfg, self._zones = cfg, zones
        self._planes = torch.zeros(2, n, k, dtype=torch.bool, device=weight.device)
        others = cfg.salient_groups * cfg.salient_order
        self._row = weight.new_zeros(n, others + cfg.groups)
        self._mean = None if cfg.has_column_scales else weight.new_zeros(n, cfg.salient_groups + cfg.groups)
        self._col = weight.new_zeros(2, cfg.groups, k) if cfg.has_column_scales else None

    def put_planes(self, columns: Tensor, planes: Tensor) -> None:
        for own, plane in zip(self._planes, planes, strict=False):  # other columns than salient ones have one
            own.index_copy_(1, columns, plane)

    def put_scales(self, salient: bool, g: int, columns: Tensor, fit: Fit) -> None:
        cfg = self._cfg
        first = g * cfg.salient_order if salient else cfg.salient_groups * cfg.salient_order + g
        self._row[:, first : first + len(fit.planes)] = fit.row_scale
        if self._mean is not None and fit.mean is not None:
            self._mean[:, g if salient else cfg.salient_groups + g] = fit.mean
        if self._col is not None and fit.col_scale is not None:
            for o in range(len(fit.planes)):
                self._col[o, g, columns] = fit.col_scale[o]

    def block(self) -> Block:
        cfg, col = self._cfg, self._col
        two = cfg.salient_order == 2
        return Block(
            salient=self._zones.salient,
            group=self._zones.group,
            sign=self._planes[0],
            second=self._planes[1] if two else None,
            row_scale=self._row,
            mean=self._mean,
            col_scale=None if col is None else col[0],
            col_scale2=None if col is None or not two else col[1, : cfg.salient_groups],
            salient_groups=cfg.salient_groups,
        )


def _check_matrix(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise InputError(f"{name} is {type(t).__name__}, must be a floating-point torch.Tensor; use torch.as_tensor")
    if t.is_meta:
        raise InputError(f"{name} {list(t.shape)} is on the meta device and has no values; load its weights first")
    if t.ndim != 2 or t.numel() == 0:
        raise InputError(f"{name} must be a non-empty matrix, got shape {list(t.shape)}")
    if not t.is_floating_point():
        raise InputError(f"{name} {list(t.shape)} must be floating point, got {t.dtype}")
    if not all(math.isfinite(end) for end in t.aminmax()):  # NaN anywhere makes both NaN
        raise InputError(f"{name} {list(t.shape)} holds NaN or Inf")


def _check_square(name: str, t: Tensor, m: int) -> None:
    if isinstance(t, Tensor) and tuple(t.shape) != (m, m):
        raise InputError(f"{name} must be [{m}, {m}] to match the {m} inputs of W, got {list(t.shape)}")
    _check_matrix(name, t)
