"""RTN, GPTQ, PB-LLM, WGM: what they promise, on matrices small enough to check by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_levels import error, example

from arbllm_kernels.methods import hessian_factor
from arbllm_kernels.methods.gptq import gptq
from arbllm_kernels.methods.pb_llm import pb_llm
from arbllm_kernels.methods.rtn import rtn
from arbllm_kernels.methods.wgm import LAMBDA, merge, wgm


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


def test_pb_llm_keeps_a_tenth_in_8_bits():
    """Without feedback (H = I) every weight can be checked against what it was made from."""
    W = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    result = pb_llm(W, hessian_factor(torch.eye(200), 0.0), 0.1, 128)
    for part, quantized in zip(W.split(128, 1), result.weight.split(128, 1), strict=True):
        salient = part.abs() >= part.abs().flatten().topk(round(0.1 * part.numel())).values[-1]
        step = (part.where(salient, 0.0).amax(1) - part.where(salient, 0.0).amin(1)) / 255
        assert ((part - quantized).abs().where(salient, 0.0) <= 1.01 * step[:, None]).all()
        others = part.abs().where(~salient, 0.0).sum(1) / (~salient).sum(1)
        binary = torch.where(part < 0, -others[:, None], others[:, None])
        torch.testing.assert_close(quantized.where(~salient, 0.0), binary.where(~salient, 0.0), rtol=1e-3, atol=1e-4)
    assert result.bits_per_weight == pytest.approx(1 + 0.9 + 0.8 + 40 * 2 / 200, abs=1e-3)


def test_pb_llm_feeds_errors_back():
    W, H = example(60, 200)
    blind = pb_llm(W, hessian_factor(torch.diag(H.diagonal()), 0.01), 0.1, 64)
    assert error(W, H, pb_llm(W, hessian_factor(H, 0.01), 0.1, 64).weight) < error(W, H, blind.weight)


def wgm_cost(magnitude: torch.Tensor, edges: list[int]) -> float:
    parts = magnitude.double().split(torch.tensor(edges).diff().tolist())
    return sum(float((part - part.mean()).square().sum()) + LAMBDA / len(part) for part in parts)


def test_wgm_merges_the_cheapest_neighbours():
    """Against the same greedy rule written plainly, and the exact optimum over all ways to cut (Algorithm 1)."""
    magnitude = torch.rand(24, generator=torch.Generator().manual_seed(0)).square().sort().values * 5
    edges = list(range(0, 25, 3))
    while len(edges) - 1 > 4:
        unions = [wgm_cost(magnitude[a:b], [0, b - a]) for a, b in zip(edges, edges[2:], strict=False)]
        del edges[unions.index(min(unions)) + 1]
    assert merge(magnitude, 4, 3) == edges
    cuts = itertools.combinations(range(1, 24), 3)
    best = min(wgm_cost(magnitude, [0, *cut, 24]) for cut in cuts)
    assert best <= wgm_cost(magnitude, edges) < wgm_cost(magnitude, [0, 6, 12, 18, 24])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (30, 70)])
def test_wgm_stores_signs_and_means(shape):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    W[0, 0] = 0.0
    result = wgm(W, 8, 16)
    levels = result.weight.abs().unique()
    assert len(levels) == min(8, -(-W.numel() // 16))
    assert (result.weight.sign()[W != 0] == W.sign()[W != 0]).all()
    assert result.bits_per_weight == pytest.approx(1 + math.ceil(math.log2(len(levels))) + 16 * len(levels) / W.numel())
    for level in levels:
        assert float(W.abs()[result.weight.abs() == level].mean()) == pytest.approx(float(level), rel=2e-3, abs=1e-6)
