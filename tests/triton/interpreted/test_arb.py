"""BiLLM, ARB and ARB-X under the interpreter against methods/ in float64."""

from __future__ import annotations

import pytest
import torch
from cases import assert_same_fit, block, expected

from arbllm_kernels.methods.solve import BINARIZERS
from arbllm_kernels.triton_kernels.arb import refine_arb


def moments(matrices, k):
    x = torch.randn(matrices, 3 * k + 8, k) * torch.rand(k).add(0.3) + 0.3
    return x.transpose(1, 2) @ x / 4


def check(method, weight, zone, order, iters, zones=4, salient_zones=2):
    S = moments(len(weight), weight.shape[2]) if method == "arb-x" else None
    found = refine_arb(weight, zone, zones, salient_zones, order, 0 if method == "billm" else iters, S)
    oracle = expected(BINARIZERS[method], weight, zone, zones, salient_zones, order, iters, S)
    assert_same_fit(found, zone, weight, *oracle)


@pytest.mark.parametrize("method", ["billm", "arb", "arb-x"])
@pytest.mark.parametrize(
    ("n", "k", "order"), [(1, 128, 2), (33, 128, 1), (33, 128, 2), (17, 1, 1), (18, 56, 2), (5, 9, 2)]
)
def test_same_scales_and_planes(method, n, k, order):
    check(method, *block(1, n, k), order, 15)


@pytest.mark.parametrize("method", ["arb", "arb-x"])
def test_a_batch_of_matrices_with_empty_zones_rows_and_columns(method):
    weight, zone = block(2, 20, 32)
    zone[0][zone[0] == 1] = 0
    zone[1] = 3
    weight[:, 3] = 0
    weight[:, :, 5] = 0
    weight[1, 2] = 7.0  # nothing left to refine
    check(method, weight, zone, 2, 4)


def test_without_iterations_arb_is_billm():
    weight, zone = block(1, 9, 64)
    found, billm = refine_arb(weight, zone, 4, 2, 2, 0), BINARIZERS["billm"]
    assert_same_fit(found, zone, weight, *expected(billm, weight, zone, 4, 2, 2, 0))
