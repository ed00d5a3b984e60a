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


@dataclass(frozen=True, eq=False)
class Factor:
    """U (float32 [m, m], upper), dead inputs (bool [m]), and the power of two that H was divided by.

    A power of two changes no digit of U and keeps the sensitivities w^2 / d^2 inside float32 whatever the units of H.
    """

    U: Tensor
    dead: Tensor
    scale: float


def hessian_factor(H: Tensor, damp: float) -> Factor:
    """Factorize a raw (undamped) Hessian, float [m, m].

    U comes from one Cholesky factorization of H with rows and columns reversed: that gives H = V V^T with V upper, so
    H^-1 = V^-T V^-1 and U = V^-1. It is done in float64; H^-1 itself is never formed.

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
    diagonal += damp * diagonal.mean()
    exponent = 2 * round(math.log2(max(float(diagonal.abs().mean()), 1e-300)) / 2)
    full *= 2.0**-exponent
    lower, info = torch.linalg.cholesky_ex(full.flip(0, 1))
    if int(info) != 0:
        raise InputError(
            f"H {list(H.shape)} is not positive definite with damp = {damp}: raise QuantConfig.damp or use more "
            "calibration tokens"
        )
    V = lower.flip(0, 1)
    U = torch.linalg.solve_triangular(V, torch.eye(len(V), dtype=V.dtype, device=V.device), upper=True)
    return Factor(U.float(), dead, 2.0**exponent)
