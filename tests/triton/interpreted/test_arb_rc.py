"""ARB-RC passes under the interpreter against methods/arb_rc.py in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import assert_same_fit, block

from arbllm_kernels.methods import arb_rc
from arbllm_kernels.triton_kernels import arb_rc as module
from arbllm_kernels.triton_kernels.arb_rc import refine_arb_rc


def check(weight, stack, zone, order, iters, zones=4, salient_zones=2):
    knobs = (zones, salient_zones, order, iters)
    found = refine_arb_rc(weight, stack, zone, *knobs)
    assert_same_fit(found, arb_rc.binarize, weight, stack, zone, *knobs)


@pytest.mark.parametrize(
    ("n", "k", "order"), [(1, 128, 2), (33, 128, 1), (33, 128, 2), (37, 1, 1), (5, 48, 2), (17, 5, 2)]
)
def test_same_scales_and_planes(n, k, order):
    check(*block(n, k=k), order, 3)


@pytest.mark.parametrize("order", [1, 2])
def test_without_iterations(order):
    check(*block(3, k=16), order, 0)


def test_paper_iterations():
    check(*block(12, k=32, zones=2, salient_zones=1), 2, 15, zones=2, salient_zones=1)


def test_zones_rows_and_columns_without_anything():
    weight, stack, zone = block(10, k=32)
    zone[zone == 1] = 0  # an empty zone
    weight[3] = 0
    weight[:, 5] = 0
    check(weight, stack, zone, 2, 2)
    check(weight, stack, torch.full_like(zone, 3), 2, 2)  # no salient column


def test_more_rows_than_programs(monkeypatch, poisoned):
    monkeypatch.setattr(module, "ARB_RC", dataclasses.replace(module.ARB_RC, max_parts=2))
    assert module.ARB_RC.parts(70) == (2, 3)
    assert module.ARB_RC.parts(33) == (2, 2)
    weight, stack, zone = block(70, 1, 33, 16, k=16, zones=2, salient_zones=1)
    weight[stack.span(3)] = 0
    check(weight, stack, zone, 2, 2, zones=2, salient_zones=1)
