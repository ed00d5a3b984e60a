"""Runs the PTX that nvcc makes of csrc/cuda for sm_80 on the CPU, with ptxvm, and says why where that is impossible.

ptxvm is not part of this repository: its folder is found in $ARBLLM_PTXVM or in ../shared beside the checkout.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from host import ROOT, SOURCE
from torch import Tensor

sys.path.insert(0, str(ROOT / "python"))
import cuda_toolkit

from arbllm_kernels.cuda import TYPES
from arbllm_kernels.ops import packed_args
from arbllm_kernels.packed import PackedWeight

WARP_ROWS, CHUNK = 32, 512  # chunks.cuh
WEIGHT_FORMAT = " ".join(["P"] * 10 + ["q"] * 2 + ["f"] + ["i"] * 14)


def missing() -> str | None:
    """Why the tests of this file cannot run; None where they can."""
    if cuda_toolkit.nvcc() is None:
        return "needs nvcc"
    if not (_folder() / "ptxvm" / "__init__.py").exists():
        return "needs ptxvm, in $ARBLLM_PTXVM or in ../shared beside the checkout"
    return None


def _folder() -> Path:
    return Path(os.environ.get("ARBLLM_PTXVM", ROOT.parent / "shared"))


@functools.cache
def module() -> Any:
    """The compiled kernels."""
    sys.path.insert(0, str(_folder()))
    ptxvm = importlib.import_module("ptxvm")
    flags = ["-std=c++17", "-O3", "-lineinfo", f"-I{ROOT / 'csrc' / 'include'}"]
    return ptxvm, ptxvm.nvcc(str(SOURCE / "launchers.cu"), flags)


@dataclass(frozen=True)
class Shape:
    """How launchers.cu would start a tensor-core kernel for a product: its name, rows of x at once, shared memory."""

    name: str
    slice: int
    shared: int


def binary_shape(pw: PackedWeight, x: Tensor, stages: int, warps: int) -> Shape:
    means, groups, tiles = pw.mean is not None, pw.layout.groups, 3 if x.dtype is torch.float32 else 2
    assert x.shape[0] == 1
    stride = 4 * (5 if means else 3) * groups + (4 if groups == 2 else 1)
    shared = 4 * (32 + 16 * 96 * tiles) + warps * (128 * stride + stages * groups * 2048)
    return Shape(f"18binary_gemv_kernelILi{groups}ELi{tiles}ELb{int(means)}E", 1, shared)


def bf16_shape(pw: PackedWeight, x: Tensor, stages: int, warps: int) -> Shape:
    means, groups, parts = pw.mean is not None, pw.layout.groups, 3 if x.dtype is torch.float32 else 2
    tiles = 2 if groups == 2 and not means and x.shape[0] > (1 if parts == 3 else 2) else 1
    second = pw.second.numel() > 0
    shared = 4 * (16 + tiles * (4096 + 2048 * second)) + stages * warps * groups * 2048
    return Shape(f"16bf16_gemv_kernelILi{groups}ELi{tiles}ELb{int(means)}E", tiles if parts == 3 else 2 * tiles, shared)


SHAPES = {"binary": binary_shape, "bf16": bf16_shape}


def linear(
    pw: PackedWeight, x: Tensor, splits: int = 1, warps: int = 4, kernel: str = "binary", **options: Any
) -> tuple[Tensor, Any]:
    """y and ptxvm's counts for a tensor-core kernel, "binary" or "bf16", started as launchers.cu starts it."""
    _, code = module()
    batch, lay = x.shape[0], pw.layout
    stages = 2 if -(-lay.cols // CHUNK) > splits else 1
    shape = SHAPES[kernel](pw, x, stages, warps)
    y = torch.full((batch, lay.rows), math.nan, dtype=x.dtype)
    partial = torch.full((splits, batch, lay.rows), math.nan)
    wide = lay.words % 4 == 0
    job = struct(pw, " P P P i i i i i", x, y, partial, TYPES[x.dtype], batch, shape.slice, stages, int(wide))
    grid = (-(-lay.rows // (warps * WARP_ROWS)), splits, -(-batch // shape.slice))
    counts = code.launch(shape.name, grid, warps * 32, [job], shared_bytes=shape.shared, **options)
    if splits > 1:
        arguments = [partial, ("s32", splits), ("s64", y.numel()), y, ("s32", TYPES[x.dtype])]
        code.launch("finish_kernel", -(-y.numel() // 256), 256, arguments)
    return y, counts


def plain_linear(pw: PackedWeight, x: Tensor) -> tuple[Tensor, Any]:
    """y and counts of the kernel for all other layouts."""
    y = torch.full((x.shape[0], pw.shape[0]), math.nan, dtype=x.dtype)
    arguments = [struct(pw, ""), x, ("s32", TYPES[x.dtype]), ("s32", x.shape[0]), y]
    grid = (-(-pw.shape[0] // 8), -(-x.shape[0] // 4))
    return y, module()[1].launch("plain_gemv_kernel", grid, 256, arguments)


def dequantize(pw: PackedWeight) -> Tensor:
    dense = torch.full(pw.shape, math.nan)
    module()[1].launch("dequantize_kernel", -(-pw.shape[0] // 8), 256, [struct(pw, ""), dense])
    return dense


def struct(pw: PackedWeight, more: str, *values: Any) -> Any:
    """The kernels' struct Weight, and what follows it in GemvJob."""
    *buffers, sizes = packed_args(pw)
    rows, cols, block_size, groups, salient_groups, salient_order, exponent, shared = sizes
    scale = pw.row_scale.dtype if pw.row_base is None else pw.row_base.dtype
    paired = (groups, salient_groups, salient_order) == (2, 2, 2) and pw.row_scale.dtype is torch.float16
    pointers = [t if t is not None and t.numel() else 0 for t in buffers]
    return module()[0].Struct(
        WEIGHT_FORMAT + more,
        *pointers,
        pw.second.numel(),
        0 if pw.col_scale2 is None else pw.col_scale2.numel(),
        2.0**exponent,
        *(rows, cols, block_size, pw.layout.blocks, pw.layout.words),
        *(groups, pw.layout.group_bits, salient_groups, salient_order),
        *(shared, TYPES[scale], TYPES[pw.row_scale.dtype], int(pw.second.numel() > 0), int(paired)),
        *values,
    )
