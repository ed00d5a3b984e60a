"""The PTX that nvcc makes of the kernels for sm_80, executed: results, bounds, races, and the traffic counted.

Needs nvcc and ptxvm (see ptx.py). ptxvm cannot show time, what ptxas makes of the PTX, or races in global memory.
"""

from __future__ import annotations

import ptx
import pytest
import torch
from helpers import random_packed
from host import Answer
from test_cuda_host import BOUND, CASES, check, make_case, rows_for, whole_numbers

from arbllm_kernels.packed import pack_bits

pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))
FAST = [name for name in CASES if not name.startswith("plain")]
PLAIN = [name for name in CASES if name.startswith("plain")]


@pytest.mark.parametrize("kernel", ptx.SHAPES)
@pytest.mark.parametrize("name", FAST)
def test_tensor_core_kernels(name: str, kernel: str) -> None:
    pw, x = rows_for(kernel, make_case(name))
    y, counts = ptx.linear(pw, x, splits=min(2, -(-pw.shape[1] // 512)), kernel=kernel)
    check(pw, x, Answer(y, ptx.dequantize(pw)))
    assert not counts.hazards and not counts.warnings


@pytest.mark.parametrize("kernel", ptx.SHAPES)
def test_whole_numbers_are_exact(kernel: str) -> None:
    for dtype in BOUND:
        pw, x = rows_for(kernel, whole_numbers(9, 300, 3, dtype))
        check(pw, x, Answer(ptx.linear(pw, x, kernel=kernel)[0], pw.dequantize()))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_kernel(name: str) -> None:
    pw, x = make_case(name)
    check(pw, x, Answer(ptx.plain_linear(pw, x)[0], ptx.dequantize(pw)))


@pytest.mark.parametrize("kernel", ptx.SHAPES)
def test_eight_warps_and_all_columns_in_one_block(kernel: str) -> None:
    pw, x = rows_for(kernel, make_case("three chunks"))
    y, _ = ptx.linear(pw, x, warps=8, seed=1, kernel=kernel)
    check(pw, x, Answer(y, pw.dequantize()))


def test_bit_planes() -> None:
    bits = torch.rand(5, 200) > 0.5
    words, back = torch.zeros(5, 8, dtype=torch.int32), torch.zeros(5, 200, dtype=torch.bool)
    sizes = [("s64", 5), ("s64", 200), ("s64", 8)]
    code = ptx.module()[1]  # names are mangled: the number is a name's length
    code.launch("13unpack_kernel", 4, 256, [pack_bits(bits), *sizes, back.view(torch.uint8)])
    code.launch("11pack_kernel", 5, 256, [bits.view(torch.uint8), *sizes, words])
    assert torch.equal(back, bits)
    assert torch.equal(words, pack_bits(bits))


def test_traffic() -> None:
    """Every plane is read once, in whole 32-byte sectors; activations and scales add little."""
    pw = random_packed(256, 2048, salient=0.08)
    _, counts = ptx.linear(pw, torch.randn(1, 2048).half(), warps=8)
    copies = [line for line in counts.by_line if line["text"].startswith("cp.async") and line["space"] == "global"]
    planes = 4 * (pw.sign.numel() + pw.group.numel())
    assert sum(line["bytes"] for line in copies) == planes
    assert sum(line["sectors"] for line in copies) == planes // 32
    assert counts.memory["global_footprint_read_bytes"] <= pw.nbytes + 4 * 2048 + 2 * 2048 + 64
