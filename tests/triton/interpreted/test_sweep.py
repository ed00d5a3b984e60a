"""The sweep of arb-levels under the interpreter against methods/levels.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from arbllm_kernels import QuantConfig, quantize_weight
from arbllm_kernels.methods import levels
from arbllm_kernels.triton_kernels import launch
from arbllm_kernels.triton_kernels.levels import Sweeper


def panel(k, n, salient=0.4):
    torch.manual_seed(k * n)
    work = torch.randn(k, n)
    coupling = torch.randn(k, k) * 0.1
    scales = torch.rand(levels.SCALES, n).sort(0, descending=True).values
    return work, coupling, scales, torch.rand(k) + 0.5, torch.rand(k) < salient


def check(work, before, coupling, scales, col, salient, storage):
    kept = [t.clone() for t in (work, coupling, scales, col)]
    found = Sweeper().sweep(work, before, coupling, scales, col, salient, storage)
    expected = levels.sweep(work, before, coupling, scales, col, salient, storage)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(kept, (work, coupling, scales, col), strict=True))


@pytest.mark.parametrize("storage", [torch.float16, torch.float32])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 33), (16, 70)])
def test_same_codes(k, n, storage):
    check(panel(k, n)[0], None, *panel(k, n)[1:], storage)


@pytest.mark.parametrize("salient", [0.0, 1.0])
def test_refinement_counts_from_other_values(salient):
    work, coupling, scales, col, mask = panel(9, 40, salient)
    wide = torch.randn(20, 40)
    check(work, wide[5:14], coupling.T, scales, col, mask, torch.float16)


def test_zeros_and_huge_and_tiny_weights():
    work, coupling, scales, col, mask = panel(8, 20)
    work[2], scales[:, 4] = 0, 0
    work[3] *= 1e4
    work[5] *= 1e-6
    check(work, None, coupling, scales, col, mask, torch.float32)


def test_a_column_without_any_sum_keeps_its_scale():
    work, coupling, scales, col, mask = panel(3, 10)
    work.zero_()
    check(work, None, coupling, scales, col, mask, torch.float32)


def test_panels_of_one_shape_share_buffers_and_nothing_else():
    sweeper, panels = Sweeper(), [panel(4, 20), panel(4, 20)]
    panels[1] = (panels[1][0] * 2, *panels[1][1:])
    found = [sweeper.sweep(p[0], None, *p[1:], torch.float32) for p in panels]
    for p, answer in zip(panels, found, strict=True):
        for a, b in zip(answer, Sweeper().sweep(p[0], None, *p[1:], torch.float32), strict=True):
            assert torch.equal(a, b)


def test_the_whole_solver(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(200, 66)
    W, H = torch.randn(40, 66) * 0.02, x.T @ x / 8
    cfg = dataclasses.replace(QuantConfig.preset("best"), sweeps=1)
    counted = []
    on_device = launch._launcher
    monkeypatch.setattr(launch, "_launcher", lambda *a, **o: (counted.append(a), on_device(*a, **o)))
    found, expected = (quantize_weight(W, H, cfg, backend=backend) for backend in ("triton", "torch"))
    assert len(counted) == 2 * (66 + 2)  # a launch per column, and one more for each panel
    same = (found.dequantize() == expected.dequantize()).float().mean()
    assert same > 0.999, "columns whose sums differ in the last digit may round otherwise, hardly more"
