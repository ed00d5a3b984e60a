"""RTN and GPTQ: what they promise, on matrices small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from test_levels import error, example

from arbllm_kernels.methods import hessian_factor
from arbllm_kernels.methods.gptq import gptq
from arbllm_kernels.methods.rtn import rtn


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rtn_takes_the_nearest_level(bits):
    W = torch.randn(9, 100, generator=torch.Generator().manual_seed(0))
    result = rtn(W, bits, 32)
    for part, quantized in zip(W.split(32, 1), result.weight.split(32, 1), strict=True):
        step = (part.amax(1).clamp(min=0) - part.amin(1).clamp(max=0)) / (2**bits - 1)  # zero is always a level
        assert ((part - quantized).abs() <= 1.01 * step[:, None]).all()
        assert all(len(row.unique()) <= 2**bits for row in quantized)
        inside = (part > quantized.amin(1, True)) & (part < quantized.amax(1, True))
        assert ((part - quantized).abs() <= 0.51 * step[:, None])[inside].all()
    assert result.bits_per_weight == pytest.approx(bits + (16 + bits) * 4 / 100)


def test_rtn_keeps_a_zero_matrix():
    assert torch.equal(rtn(torch.zeros(3, 40), 2).weight, torch.zeros(3, 40))


@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_beats_rtn_and_is_rtn_where_nothing_is_correlated(ordered):
    W, H = example(40, 200)
    plain, better = rtn(W, 3, 64), gptq(W, hessian_factor(H, 0.01, ordered=ordered), 3, 64)
    assert error(W, H, better.weight) < 0.8 * error(W, H, plain.weight)
    assert better.bits_per_weight == pytest.approx(plain.bits_per_weight + (16 / 40 if ordered else 0))
    independent = gptq(W, hessian_factor(torch.eye(200), 0.0), 3, 64)
    torch.testing.assert_close(independent.weight, plain.weight)
