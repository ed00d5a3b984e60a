"""BiLLM, ARB and ARB-X under the interpreter against methods/ in float64."""

from __future__ import annotations

import pytest
import torch
from cases import assert_same_fit, block

from arbllm_kernels.methods.solve import BINARIZERS
from arbllm_kernels.triton_kernels.arb import refine_arb


def moments(matrices, k):
    x = torch.randn(matrices, 3 * k + 8, k) * torch.rand(k).add(0.3) + 0.3
    return x.transpose(1, 2) @ x / 4


def check(method, weight, stack, zone, order, iters, zones=4, salient_zones=2):
    S = moments(len(stack), weight.shape[1]) if method == "arb-x" else None
    knobs = (zones, salient_zones, order, 0 if method == "billm" else iters)
    found = refine_arb(weight, stack, zone, *knobs, S)
    assert_same_fit(found, BINARIZERS[method], weight, stack, zone, *knobs, S)


@pytest.mark.parametrize("method", ["billm", "arb", "arb-x"])
@pytest.mark.parametrize(
    ("n", "k", "order"), [(1, 128, 2), (33, 128, 1), (33, 128, 2), (17, 1, 1), (18, 56, 2), (5, 9, 2)]
)
def test_same_scales_and_planes(method, n, k, order):
    check(method, *block(n, k=k), order, 15)


@pytest.mark.parametrize("method", ["arb", "arb-x"])
def test_matrices_of_all_heights_with_empty_zones_rows_and_columns(method):
    weight, stack, zone = block(20, 1, 37, 20, k=32)
    first, one, third, last = (stack.span(i) for i in range(4))
    zone[first][zone[first] == 1] = 0
    zone[one] = 3
    weight[third] = 0
    weight[last][3] = 0
    weight[last][:, 5] = 0
    weight[last][2] = 7.0  # nothing left to refine
    check(method, weight, stack, zone, 2, 4)


def test_without_iterations_arb_is_billm():
    check("billm", *block(9, k=64), 2, 0)
