"""Products by native weights, in every number of digits of x, for tests of the kernels."""

from __future__ import annotations

import torch
from helpers import element, native_weight

from arbllm_kernels import native, ops
from arbllm_kernels.packed import PackedWeight

# Dtype of x, and whether activations are in 8 bits: three digits, two, and one.
WAYS = ((torch.float32, False), (torch.bfloat16, False), (torch.float16, False), (torch.float32, True))


def run(pw: PackedWeight, x: torch.Tensor, int8: bool, threads: int = 1, repack: bool = True) -> torch.Tensor:
    """In the dtype of x: by line, or in a copy of the weight with `repack`, else by blending."""
    y = torch.full((x.shape[0], pw.layout.rows), float("nan"), dtype=x.dtype)
    args = ops.packed_args(pw)
    weight, names = native_weight(args, repack), native.extension.Activations
    way, batch = names.int8 if int8 else names.exact, x.shape[0]
    assert weight.gemm(x.data_ptr(), element(x.dtype), batch, y.data_ptr(), threads, way) == native.active_isa()
    return y


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integers = torch.int32 if a.dtype is torch.float32 else torch.int16
    return a.dtype is b.dtype and torch.equal(a.view(integers), b.view(integers))


def check_bits(pw: PackedWeight, batch: int) -> None:
    """Against the scalar code."""
    for dtype, int8 in WAYS:
        x = torch.randn(batch, pw.layout.cols, dtype=dtype)
        got = run(pw, x, int8)
        with native.forced_isa("scalar"):
            assert same_bits(got, run(pw, x, int8)), (dtype, int8, pw.layout)


def check_rows(pw: PackedWeight, batch: int, step: int) -> None:
    """A row of y, of every `step`, depends neither on the others nor on the number of threads."""
    for dtype, int8 in WAYS:
        x = torch.randn(batch, pw.layout.cols, dtype=dtype)
        together = run(pw, x, int8, threads=3)
        for i in range(0, batch, step):
            assert torch.equal(together[i : i + 1], run(pw, x[i : i + 1], int8))


def check_rows_that_are_not_finite(pw: PackedWeight) -> None:
    """They leave the others alone."""
    for dtype, int8 in WAYS:
        x = torch.randn(5, pw.layout.cols, dtype=dtype)
        before = run(pw, x, int8)
        x[1, 7], x[3, -1] = float("inf"), float("nan")
        got = run(pw, x, int8)
        assert torch.equal(got[::2], before[::2]) and bool((~got[1::2].isfinite()).all())
        assert bool(got[3].isnan().all())
