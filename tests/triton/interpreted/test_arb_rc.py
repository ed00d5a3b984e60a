"""ARB-RC passes under the interpreter against methods/arb_rc.py in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import assert_same_fit, block, expected

from arbllm_kernels.methods import arb_rc
from arbllm_kernels.triton_kernels import arb_rc as module
from arbllm_kernels.triton_kernels.arb_rc import refine_arb_rc


def check(weight, zone, order, iters, zones=4, salient_zones=2):
    found = refine_arb_rc(weight, zone, zones, salient_zones, order, iters)
    oracle = expected(arb_rc.binarize, weight, zone, zones, salient_zones, order, iters)
    assert_same_fit(found, zone, weight, *oracle)
    return found


@pytest.mark.parametrize(
    ("n", "k", "order"), [(1, 128, 2), (33, 128, 1), (33, 128, 2), (37, 1, 1), (5, 48, 2), (17, 5, 2)]
)
def test_same_scales_and_planes(n, k, order):
    check(*block(1, n, k), order, 3)


@pytest.mark.parametrize("order", [1, 2])
def test_without_iterations(order):
    check(*block(1, 3, 16), order, 0)


def test_paper_iterations():
    check(*block(1, 12, 32, zones=2, salient_zones=1), 2, 15, zones=2, salient_zones=1)


def test_zones_rows_and_columns_without_anything():
    weight, zone = block(1, 10, 32)
    zone[zone == 1] = 0  # an empty zone
    weight[:, 3] = 0
    weight[:, :, 5] = 0
    check(weight, zone, 2, 2)
    check(weight, torch.full_like(zone, 3), 2, 2)  # no salient column


def test_views_of_a_wider_matrix_are_read_in_place():
    weight, zone = block(2, 9, 64, zones=2, salient_zones=0)
    wide = torch.randn(2, 9, 100)
    wide[:, :, 20:84] = weight
    whole, view = (check(w, zone, 1, 1, zones=2, salient_zones=0) for w in (weight, wide[:, :, 20:84]))
    assert torch.equal(whole.planes, view.planes) and torch.equal(whole.row, view.row)


def test_more_rows_than_programs(monkeypatch):
    monkeypatch.setattr(module, "ARB_RC", dataclasses.replace(module.ARB_RC, max_parts=2))
    assert module.ARB_RC.parts(70) == (2, 3)
    check(*block(1, 70, 16, zones=2, salient_zones=1), 2, 2, zones=2, salient_zones=1)
