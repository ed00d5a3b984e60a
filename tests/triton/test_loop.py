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
from arbllm_kernels.triton_kernels.solve import block_loop

# ARB-RC: 33 passes; the others: one refinement. The rest is the partition search, rounding and the GEMM.
PER_BLOCK = {"billm": 30, "arb": 30, "arb-x": 60, "arb-rc": 65}


@pytest.mark.parametrize("method", PER_BLOCK)
def test_the_loop_runs_on_tensors_without_values(method):
    count = launches.on_device(QuantConfig(method=method), 4096, matrices=3)
    assert count.waits == 0
    assert 0 < count.launches <= PER_BLOCK[method]


def test_that_a_question_to_the_device_would_be_noticed():
    with pytest.raises(RuntimeError, match=r"(?i)meta tensor"):
        float(torch.empty(1, device="meta"))
    with pytest.raises(InputError, match="CUDA tensors, got one on meta"):
        block_loop(torch.empty(1, 8, 32, device="meta"), [torch.empty(32, 32, device="meta")], QuantConfig(), None)


def test_cpu_tensors_are_refused():
    with pytest.raises(InputError, match="Triton kernels run on CUDA tensors, got one on cpu"):
        quantize_weight(torch.randn(4, 32), torch.eye(32), backend="triton")
