"""What the solver needs to know of the calibration inputs: the inverse Hessian's Cholesky factor (GPTQ, BiLLM).

H = (2/N) sum over the tokens of N sequences of x x^T. Dead inputs (H_jj = 0) get H_jj = 1 and their weights are set to
0; `damp` times the mean diagonal is added to the diagonal; U is upper triangular with H^-1 = U^T U.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

OUTLIER = 10.0
WHOLE = 256  # columns of a triangle inverted at once


@dataclass(frozen=True, eq=False)
class Factor:
    """U (float32 [m, m], upper), dead inputs (bool [m]), and the power of two that H was divided by.

    A power of two changes no digit of U and keeps the sensitivities w^2 / d^2 inside float32 whatever the units of H.
    With an order (int64 [m]) U belongs to the columns in that order, and the damped H, float32, is kept in it as well.
    """

    U: Tensor
    dead: Tensor
    scale: float
    order: Tensor | None = None
    H: Tensor | None = None


def hessian_factor(H: Tensor, damp: float, *, ordered: bool = False) -> Factor:
    """Factorize a raw (undamped) Hessian, float [m, m].

    U comes from one Cholesky factorization of H with rows and columns reversed: that gives H = V V^T with V upper, so
    H^-1 = V^-T V^-1 and U = V^-1. It is done in float64; H^-1 itself is never formed.

    `ordered` takes the columns by falling activation energy H_jj (GPTQ's act-order): errors made early can still be
    made up for, so the inputs that matter most go first. Its mean diagonal counts no input with more than OUTLIER times
    the median of those alive: one massive activation would otherwise damp away what the Hessian says of all others.

    Raises:
        InputError: H is not square, finite or (after damping) positive definite.
    """
    if H.ndim != 2 or H.shape[0] != H.shape[1] or H.numel() == 0:
        raise InputError(f"H must be a square matrix, got shape {list(H.shape)}")
    if not bool(torch.isfinite(H).all()):
        raise InputError(f"H {list(H.shape)} holds NaN or Inf: check the calibration inputs")
    full = H.to(torch.float64, copy=True)
    diagonal = full.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damp * (_typical(diagonal[~dead]) if ordered and not bool(dead.all()) else diagonal.mean())
    exponent = 2 * round(math.log2(max(float(diagonal.abs().mean()), 1e-300)) / 2)
    full *= 2.0**-exponent
    order = diagonal.argsort(descending=True, stable=True) if ordered else None
    if order is not None:
        full = full[order][:, order]
    lower, info = torch.linalg.cholesky_ex(full.flip(0, 1))
    if int(info) != 0:
        raise InputError(
            f"H {list(H.shape)} is not positive definite with damp = {damp}: raise QuantConfig.damp or use more "
            "calibration tokens"
        )
    V = lower.flip(0, 1)
    U = torch.zeros_like(V)
    _invert(V, U)
    return Factor(U.float(), dead, 2.0**exponent, order, None if order is None else full.float())


def _invert(V: Tensor, out: Tensor) -> None:
    """V^-1 of an upper triangle into `out`, which is zero.

    That of [[A, B], [0, D]] is [[A^-1, -A^-1 B D^-1], [0, D^-1]]. By halves it is nearly all matrix
    products, of two thirds of the operations that solving for an identity takes.
    """
    m, half = len(V), len(V) // 2
    if m <= WHOLE:
        out.copy_(torch.linalg.solve_triangular(V, torch.eye(m, dtype=V.dtype, device=V.device), upper=True))
        return
    _invert(V[:half, :half], out[:half, :half])
    _invert(V[half:, half:], out[half:, half:])
    out[:half, half:] = -(out[:half, :half] @ V[:half, half:] @ out[half:, half:])


def _typical(energy: Tensor) -> Tensor:
    return energy.clamp(max=OUTLIER * energy.median()).mean()


def corrected(W: Tensor, factor: Factor, drift: Tensor, share: float) -> Tensor:
    """The weights, float32 [n, m], whose outputs for the inputs x come nearest to those of W for other inputs x'.

    ||W X' - Q X||^2 is, but for a constant, ||(W* - Q) X||^2 with W* = W + W D H^-1, D = (X' - X) X^T (`drift`, in the
    units of H). So a solver that knows nothing of X' need only be given W*; `share` goes part of the way. Aiming at the
    dense model's outputs is the idea of GPTAQ (Li et al. 2025), which moves the weights column by column instead.
    """
    order = torch.arange(len(drift), device=W.device) if factor.order is None else factor.order
    gain = (W.float() @ drift)[:, order] @ factor.U.T @ factor.U / factor.scale
    return W.float() + share * gain[:, order.argsort()]
