"""Dequantize, GEMV and GEMM kernels under the interpreter, on every layout."""

from __future__ import annotations

import pytest
import torch
from helpers import random_packed
from products import LAYOUTS, assert_product

from arbllm_kernels import InputError, gpu
from arbllm_kernels.ops import packed_args
from arbllm_kernels.triton_kernels import gemm as module
from arbllm_kernels.triton_kernels.configs import ProductConfig
from arbllm_kernels.triton_kernels.dequantize import dequantize, stored_columns
from arbllm_kernels.triton_kernels.gemm import dense_gemm, gemm
from arbllm_kernels.triton_kernels.gemv import gemv


def packed(name):
    rows, cols, block, options = LAYOUTS[name]
    return random_packed(rows, cols, block, **options)


@pytest.mark.parametrize("name", LAYOUTS)
def test_dequantize_has_the_bits_of_the_oracle(name):
    pw = packed(name)
    assert torch.equal(dequantize(*packed_args(pw)), pw.dequantize())
    rows = pw.layout.rows
    stored = pw.dequantize()[:, pw.order.long()]
    assert torch.equal(stored_columns(*packed_args(pw), first=0, last=rows).T, stored)
    half = stored_columns(*packed_args(pw), first=rows // 2, last=rows, dtype=torch.float16, factor=1.0)
    exact = stored[rows // 2 :].double() * 2.0**-pw.layout.exponent
    torch.testing.assert_close(half.T.double(), exact, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("name", LAYOUTS)
def test_products_in_fp32(name):
    pw = packed(name)
    x = torch.randn(2, pw.layout.cols)
    assert_product(gemv(x, *packed_args(pw)), x, pw, rounds_weights=False)
    assert_product(gemm(x, *packed_args(pw)), x, pw, rounds_weights=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_gemv_in_half_precision(batch, dtype):
    pw = packed("arb-rc + cgb")
    x = torch.randn(batch, pw.layout.cols).to(dtype)
    truncates = dtype is torch.bfloat16
    assert_product(gemv(x, *packed_args(pw)), x, pw, rounds_weights=False, truncates=truncates)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])  # bfloat16: see tests/triton/test_compiled.py
@pytest.mark.parametrize("batch", [5, 70])
def test_gemm(batch, dtype):
    pw = random_packed(70, 256, exponent=-3)
    x = torch.randn(batch, 256).to(dtype)
    assert_product(gemm(x, *packed_args(pw)), x, pw, rounds_weights=dtype is torch.float16)


@pytest.mark.parametrize("per_part", [128, 256, 384])
def test_gemm_in_parts_that_end_inside_a_block(per_part, monkeypatch):
    pw = random_packed(9, 600, 320, salient=0.5)
    monkeypatch.setattr(ProductConfig, "parts", lambda *_: (-(-600 // per_part), per_part))
    x = torch.randn(3, 600)
    assert_product(gemm(x, *packed_args(pw)), x, pw, rounds_weights=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["short last block", "explicit order", "fp32 scales", "zero"])
def test_dense_gemm(name, dtype, monkeypatch):
    pw = packed(name)
    monkeypatch.setattr(module, "TILE_WEIGHTS", 4 * pw.layout.cols)
    x = torch.randn(3, pw.layout.cols).to(dtype)
    assert_product(dense_gemm(x, *packed_args(pw)), x, pw, rounds_weights=dtype is torch.float16)


@pytest.mark.parametrize("batch", [(), (8,), (3, 3), (70,), (0,)])
def test_gpu_linear_picks_by_batch(batch, monkeypatch):
    pw = packed("one row")
    x = torch.randn(*batch, pw.layout.cols)
    y = gpu.linear(x, *packed_args(pw))
    assert y.shape == (*batch, pw.layout.rows)
    assert_product(y, x, pw, rounds_weights=False)
    with pytest.raises(InputError, match="the last dimension must be 130"):
        gpu.linear(torch.randn(3), *packed_args(pw))


def test_gpu_input_grad_and_dequantize(monkeypatch):
    monkeypatch.setattr(gpu, "TILE_WEIGHTS", 4 * 256)
    pw = packed("arb-rc + cgb")
    dy = torch.randn(2, 3, pw.layout.rows)
    dense = gpu.dequantize(*packed_args(pw))
    assert torch.equal(dense, pw.dequantize())
    torch.testing.assert_close(gpu.linear_input_grad(dy, *packed_args(pw)), dy @ dense)
    with pytest.raises(InputError, match="the last dimension must be 21"):
        gpu.linear_input_grad(torch.randn(3), *packed_args(pw))
