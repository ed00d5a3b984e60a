"""The block loop never asks the device for a number, and how many launches a block takes.

Meta tensors have shapes and no values: whatever would wait for the device raises. No kernel runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
import launches

from arbllm_kernels import InputError, QuantConfig, quantize_weight
from arbllm_kernels.methods import solve
from arbllm_kernels.triton_kernels.solve import block_loop, block_steps

# ARB-RC: 33 passes; the others: one refinement. The rest is the partition search, rounding and the GEMM.
PER_BLOCK = {"billm": 27, "arb": 27, "arb-x": 57, "arb-rc": 60}


@pytest.mark.parametrize("method", PER_BLOCK)
def test_the_loop_runs_on_tensors_without_values(method):
    cfg = QuantConfig(method=method)
    assert 0 < launches.one_block(cfg, 4096).launches <= PER_BLOCK[method]
    mixed = launches.on_device(cfg, [(4096, 512), (4096, 500), (5, 256), (1024, 256), (1024, 200)])
    assert mixed.waits == 0
    # Four steps, and two more because 500 and 200 end within a block; 4 GEMMs and some sorts more than one matrix has.
    assert mixed.launches <= 6 * PER_BLOCK[method] + 18


def test_what_is_solved_together_is_bounded(monkeypatch):
    module = sys.modules[solve.__module__]
    weights = [torch.empty(*shape) for shape in ((4, 8), (9, 6), (12, 8), (50, 8), (2, 2), (1, 1))]
    assert module.solved_together(weights, QuantConfig()) == [[0], [1], [2], [3], [4], [5]], "on the CPU each alone"
    monkeypatch.setattr(module, "solver_is_triton", lambda backend, device, block: True)
    assert module.solved_together(weights, QuantConfig()) == [[0, 1, 2, 3, 4, 5]]
    monkeypatch.setattr(module, "TOGETHER", 100)
    assert module.solved_together(weights, QuantConfig()) == [[0, 1], [2], [3], [4, 5]]


def test_that_a_question_to_the_device_would_be_noticed():
    with pytest.raises(RuntimeError, match=r"(?i)meta tensor"):
        float(torch.empty(1, device="meta"))
    with pytest.raises(InputError, match="CUDA tensors, got one on meta"):
        work, U = torch.empty(8, 32, device="meta"), torch.empty(32, 32, device="meta")
        block_loop(block_steps([(8, 32)], 32, "meta"), [work], [U], QuantConfig(), None)


def test_cpu_tensors_are_refused():
    with pytest.raises(InputError, match="Triton kernels run on CUDA tensors, got one on cpu"):
        quantize_weight(torch.randn(4, 32), torch.eye(32), backend="triton")
