"""Which kernel serves a CUDA tensor: the one place that decides. Imports Triton and CUDA kernels only when asked.

    arb::linear, up to GEMV_BATCH rows of x    the CUDA extension where built, if its fast kernel takes the layout,
                                               else Triton's GEMV, else the CUDA extension's plain kernel
    arb::linear, up to GEMM_BATCH rows         Triton's GEMM, which dequantizes in registers, else the CUDA extension
    arb::linear, more rows                     tiles of W are dequantized by Triton and multiplied by the library's GEMM
    arb::linear_input_grad                     tiles of W are dequantized and multiplied by the library's GEMM
    arb::dequantize                            the CUDA extension where it was built, else Triton
    the solver                                 Triton: the paper's methods for blocks that fit its registers, and the
                                               sweep of arb-levels; else methods/ in plain torch

docs/gpu-kernels.md and docs/gpu-cuda.md say on which devices this ran.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from . import cuda
from .errors import InputError

GEMV_BATCH = 8
GEMM_BATCH = 128
MAX_SOLVER_BLOCK = 256  # columns of a block that the solver kernels keep in registers
TILE_WEIGHTS = 1 << 24  # weights per dequantized tile: 64 MB of float32


def linear(x: Tensor, *args: Any) -> Tensor:
    """arb::linear on a CUDA device. x: [..., m] of fp32, fp16 or bf16; args: ops.packed_args."""
    rows, cols = args[-1][:2]
    if x.shape[-1] != cols:
        raise InputError(f"packed weight times {list(x.shape)}: the last dimension must be {cols}")
    flat = x.reshape(-1, cols).contiguous()
    kernel = product_kernel(flat.shape[0], *args)
    if flat.shape[0] == 0:
        y = flat.new_empty(0, rows)
    elif kernel == "CUDA":
        y = cuda.linear(flat, *args)
    else:
        require_triton("arb.linear on a CUDA device")
        from .triton_kernels.gemm import dense_gemm, gemm
        from .triton_kernels.gemv import gemv

        with on_device(x.device):
            y = {"Triton GEMV": gemv, "Triton GEMM": gemm, "dense tiles": dense_gemm}[kernel](flat, *args)
    return y.view(*x.shape[:-1], rows)


def product_kernel(batch: int, *args: Any) -> str:
    """What multiplies `batch` rows of x by the weight ops.packed_args, by name.

    The CUDA extension's plain kernel takes more instructions than Triton's GEMV (bench/cuda_counts.py --plain).
    """
    few = batch <= GEMV_BATCH
    if _has_cuda(args[0].device) and ((few and cuda.is_fast_layout(*args)) or not has_triton()):
        return "CUDA"
    return "Triton GEMV" if few else "Triton GEMM" if batch <= GEMM_BATCH else "dense tiles"


def linear_input_grad(dy: Tensor, *args: Any) -> Tensor:
    """arb::linear_input_grad on a CUDA device: dy [..., n] -> dy W, [..., m], summed in float32."""
    rows, cols = args[-1][:2]
    if dy.shape[-1] != rows:
        raise InputError(f"packed weight times {list(dy.shape)}: the last dimension must be {rows}")
    require_triton("the gradient of arb.linear on a CUDA device")
    from .triton_kernels.dequantize import stored_columns

    flat = dy.reshape(-1, rows).float()
    stored = torch.zeros(flat.shape[0], cols, dtype=torch.float32, device=dy.device)
    step = max(1, TILE_WEIGHTS // cols)
    with on_device(dy.device):
        for first in range(0, rows, step):
            last = min(first + step, rows)
            stored.addmm_(flat[:, first:last], stored_columns(*args, first=first, last=last).T)
    dx = torch.empty_like(stored).index_copy_(1, args[-3].long(), stored)
    return dx.to(dy.dtype).view(*dy.shape[:-1], cols)


def dequantize(*args: Any) -> Tensor:
    """arb::dequantize on a CUDA device: float32 [n, m]."""
    with on_device(args[0].device):
        if _has_cuda(args[0].device):
            return cuda.dequantize(*args)
        require_triton("arb.dequantize on a CUDA device")
        from .triton_kernels import dequantize as kernel

        return kernel.dequantize(*args)


def _has_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and cuda.available(device)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes it the current one: there Triton starts kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


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
