"""Which kernel serves a CUDA tensor: the one place that decides. Imports Triton only when asked for it.

The solver: Triton, for blocks that fit its registers; else the plain torch path of methods/.
"""

from __future__ import annotations

import importlib.util

import torch

from .errors import InputError

MAX_SOLVER_BLOCK = 256  # columns of a block that the solver kernels keep in registers


def has_triton() -> bool:
    """Whether Triton can be imported; nothing is imported yet."""
    return importlib.util.find_spec("triton") is not None and importlib.util.find_spec("triton.language") is not None


def require_triton(what: str) -> None:
    """Raise InputError where Triton is not installed."""
    if not has_triton():
        raise InputError(f"{what} needs Triton, which is not installed: pip install 'arbllm_kernels[triton]'")


def solver_is_triton(backend: str, device: torch.device, block_size: int) -> bool:
    """Whether `backend` of quantize_weight means the Triton solver for a matrix on `device`.

    Raises:
        InputError: Triton was asked for and is not installed.
    """
    if backend == "triton":
        require_triton("backend='triton'")
        return True
    return backend == "auto" and device.type == "cuda" and block_size <= MAX_SOLVER_BLOCK and has_triton()
