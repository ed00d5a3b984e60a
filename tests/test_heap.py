"""Quantizing teaches glibc to keep freed memory, so that the kernel need not clear every activation anew."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Each block is larger than those before it, from which glibc would learn too late.
CODE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from tiny import llama
import arbllm_kernels as arb

model, ids = llama(), torch.arange(16)[None]
if sys.argv[2] == "quantized":
    arb.quantize_model(model, ids, arb.QuantConfig(block_size=32, iters=1), progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for mib in range(2, 31):
    torch.zeros(mib << 20, dtype=torch.uint8)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() >> 20)
"""


def cleared(when: str) -> int:
    """MiB that the kernel clears for blocks of 464 in all, of which the largest has 30."""
    command = [sys.executable, "-c", CODE, str(Path(__file__).parent), when]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_pages_are_cleared_once() -> None:
    if cleared("before") < 400:
        pytest.skip("large pages, or another allocator than glibc's")
    assert cleared("quantized") < 64
