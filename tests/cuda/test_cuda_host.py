"""The CUDA kernels' source, compiled as host C++: results against PackedWeight.dequantize, for every kind of layout.

The shim (shim.h) runs one OS thread per CUDA thread with real barriers. It proves neither speed nor what ptxas makes of
the source; test_cuda_ptx.py runs the compiled PTX.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from helpers import random_packed
from host import ROOT, Answer, Launch, compile_host, launch_of, run, run_bits
from torch import Tensor

from arbllm_kernels.packed import PackedWeight, pack_bits

sys.path.insert(0, str(ROOT / "bench"))
import cuda_aot

BILLM = {"mean": True, "col_scale": False, "salient_groups": 1}
# name -> (batch, dtype of x, rows, cols, keywords of random_packed)
CASES = {
    "arb-rc+cgb": (1, torch.float32, 70, 300, {}),
    "three chunks": (2, torch.float16, 40, 1154, {"block_size": 256, "salient": 0.1}),
    "no groups": (3, torch.bfloat16, 5, 130, {"groups": 1, "salient_order": 1}),
    "no groups, order 2": (1, torch.float32, 17, 128, {"groups": 1}),
    "billm": (1, torch.float32, 33, 200, BILLM),
    "means, groups among salient": (2, torch.float16, 20, 256, {"mean": True, "col_scale": False}),
    "means without groups": (1, torch.float32, 9, 190, {"mean": True, "col_scale": False, "groups": 1}),
    "fp32 scales, exponent": (1, torch.float32, 66, 256, {"dtype": torch.float32, "exponent": -7}),
    "no column scales": (2, torch.float32, 8, 128, {"col_scale": False}),
    "nothing salient": (1, torch.float16, 12, 256, {"salient": 0.0}),
    "all salient": (4, torch.float16, 40, 384, {"salient": 1.0}),
    "32 of 128 salient": (1, torch.float16, 40, 256, {"salient": 0.25}),
    "33 of 128 salient": (2, torch.bfloat16, 40, 256, {"salient": 0.258}),
    "one block of 38": (1, torch.float32, 3, 38, {"block_size": 64}),
    "salient without groups": (1, torch.float32, 24, 256, {"salient_groups": 1}),
    "batch 8": (8, torch.bfloat16, 10, 128, {}),
    "batch 5 in float32": (5, torch.float32, 10, 140, {}),
    "shared columns, 8-bit row scales, order": (
        *(1, torch.float32, 35, 520),
        {"block_size": 256, "shared": True, "coded": True, "ordered": True},
    ),
    "8-bit row scales, all salient": (2, torch.float16, 6, 256, {"shared": True, "coded": True, "salient": 1.0}),
    "plain: odd columns": (1, torch.float16, 9, 257, {}),
    "plain: block 37": (2, torch.float32, 11, 100, {"block_size": 37}),
    "plain: block 1": (1, torch.float32, 4, 70, {"block_size": 1}),
    "plain: four groups": (5, torch.float16, 9, 150, {"groups": 4}),
    "plain: four groups, salient without": (1, torch.float32, 9, 150, {"groups": 4, "salient_groups": 1}),
    "plain: means and column scales": (1, torch.bfloat16, 9, 150, {"mean": True}),
    "plain: block 192, format 2": (1, torch.float32, 9, 300, {"block_size": 192, "shared": True, "coded": True}),
}
# Relative to sum |w||x|: rounding of y, and of the activations, which are 2 bfloat16 (3 where x is float32); every
# float32 operation of a sum of up to 2000 terms rounds once, mostly in blocks of 16.
# kernel -> compute capability, major, of a device that runs it; "binary" for one row of x
KERNELS = {"binary": "8", "bf16": "10"}
BOUND = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
# Relative to sum |w| max |x|: the binary kernel rounds x c to 15 bits (23 where x is float32) of the largest.
STEP = {torch.float32: 2**-23, torch.float16: 2**-15, torch.bfloat16: 2**-15}


def make_case(name: str) -> tuple[PackedWeight, Tensor]:
    batch, dtype, rows, cols, keywords = CASES[name]
    pw = random_packed(rows, cols, seed=len(name), **{"block_size": 128, **keywords})
    return pw, torch.randn(batch, cols, generator=torch.Generator().manual_seed(1)).to(dtype)


def rows_for(kernel: str, case: tuple[PackedWeight, Tensor]) -> tuple[PackedWeight, Tensor]:
    """The case, with as many rows of x as the kernel takes."""
    return (case[0], case[1][:1]) if kernel == "binary" else case


def check(pw: PackedWeight, x: Tensor, answer: Answer) -> None:
    dense = pw.dequantize()
    assert torch.equal(answer.dense, dense)
    exact, size = x.double() @ dense.double().T, dense.double().abs()
    scale = BOUND[x.dtype] * (x.double().abs() @ size.T) + STEP[x.dtype] * x.double().abs().amax(1)[:, None] * size.sum(
        1
    )
    assert (answer.y.double() - exact).abs().le(scale).all()
    if torch.equal(x, x.round()) and torch.equal(dense, dense.round()):
        assert torch.equal(answer.y, exact.to(x.dtype))


def whole_numbers(rows: int, cols: int, batch: int, dtype: torch.dtype) -> tuple[PackedWeight, Tensor]:
    """All scales 1, and whole x: nothing is rounded but y, and a bound cannot hide a small error."""
    pw = random_packed(rows, cols, seed=rows)
    scales = {name: torch.ones_like(getattr(pw, name)) for name in ("row_scale", "col_scale", "col_scale2")}
    x = torch.randint(-60, 61, (batch, cols), generator=torch.Generator().manual_seed(2)).to(dtype)
    return dataclasses.replace(pw, **scales), x


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_host(tmp_path_factory.mktemp("cuda") / "plain")


@pytest.fixture(scope="module")
def answers(program: Path) -> dict[tuple[str, str], Answer]:
    """Every case and kernel, one process for each kernel."""
    found = {}
    for kernel, major in KERNELS.items():
        cases = [rows_for(kernel, make_case(name)) for name in CASES]
        found |= {(kernel, name): a for name, a in zip(CASES, run(program, cases, SHIM_MAJOR=major), strict=True)}
    return found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str, kernel: str, answers: dict[tuple[str, str], Answer]) -> None:
    check(*rows_for(kernel, make_case(name)), answers[kernel, name])


def test_both_kernels_ran(answers: dict[tuple[str, str], Answer]) -> None:
    """They round differently."""
    fast = [name for name in CASES if not name.startswith("plain")]
    same = [name for name in fast if torch.equal(answers["binary", name].y, answers["bf16", name].y[:1])]
    assert len(same) < len(fast) / 2


def test_rows_do_not_depend_on_the_batch(program: Path) -> None:
    """But for one row alone on a device with the binary kernel."""
    pw, x = make_case("batch 8")
    for major, least in ((KERNELS["binary"], 2), (KERNELS["bf16"], 1)):
        cases = [(pw, x), *((pw, x[i : i + least]) for i in range(0, len(x), least))]
        whole, *parts = run(program, cases, SHIM_MAJOR=major)
        assert torch.equal(whole.y, torch.cat([part.y for part in parts]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_whole_numbers_are_exact(kernel: str, program: Path) -> None:
    cases = [rows_for(kernel, whole_numbers(9, 300, 3, dtype)) for dtype in BOUND]
    for case, answer in zip(cases, run(program, cases, SHIM_MAJOR=KERNELS[kernel]), strict=True):
        check(*case, answer)


@pytest.mark.parametrize("kernel", KERNELS)
def test_activations_of_any_size(kernel: str, program: Path) -> None:
    """Zeros, an outlier, tiny numbers, and what is not finite, which spoils its own row alone."""
    pw = random_packed(8, 256, salient=0.1)
    x = torch.randn(7, 256, generator=torch.Generator().manual_seed(3))
    x[1] = 0
    x[2, 5] = 1000
    x[3] *= 1e-30
    x[4, 7], x[5, 200], x[6, 0] = math.inf, math.nan, -math.inf
    for dtype in (torch.float32, torch.bfloat16):
        cases = [(pw, one[None]) for one in x.to(dtype)] if kernel == "binary" else [(pw, x.to(dtype))]
        y = torch.cat([answer.y for answer in run(program, cases, SHIM_MAJOR=KERNELS[kernel])])
        check(pw, x[:4].to(dtype), Answer(y[:4], pw.dequantize()))
        assert y[4:].isnan().all()


def test_splits_and_warps_change_nothing_but_rounding(program: Path) -> None:
    case = random_packed(130, 1154, 256, salient=0.1), torch.randn(2, 1154).half()
    for processors in ("1", "100"):
        for kernel, major in KERNELS.items():
            given = rows_for(kernel, case)
            check(*given, run(program, [given], SHIM_PROCESSORS=processors, SHIM_MAJOR=major)[0])


# A device on which a block of threads takes more than one chunk: nothing else is to be kept busy, and memory is there.
ONE_BLOCK = {"SHIM_PROCESSORS": "0", "SHIM_SHARED_MEMORY": str(227 << 10)}


def test_more_than_one_chunk(recorder: Path) -> None:
    launch = launch_of(recorder, 130, 1152, processors=0, shared_memory=227 << 10)
    assert 1152 / 128 / launch.grid[1] > 4


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("batch", "dtype"), [(4, torch.float16), (2, torch.float32)])
def test_one_block_of_threads_for_all_columns(batch: int, dtype: torch.dtype, kernel: str, program: Path) -> None:
    case = rows_for(kernel, (random_packed(130, 1152, salient=0.1), torch.randn(batch, 1152).to(dtype)))
    check(*case, run(program, [case], **ONE_BLOCK, SHIM_MAJOR=KERNELS[kernel])[0])


# processors, bytes of shared memory that a block of threads may have
DEVICES = {"A100": (108, 163 << 10), "H100": (132, 227 << 10), "RTX 4090": (128, 99 << 10), "RTX 3060": (28, 99 << 10)}


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-DARB_SHIM_RECORD")
    return compile_host(tmp_path_factory.mktemp("cuda") / "launches.so", flags)


@pytest.mark.parametrize("device", DEVICES)
def test_every_launch_fits_the_device(device: str, recorder: Path) -> None:
    processors, memory = DEVICES[device]
    shapes = ((14336, 4096), (13824, 5120), (32000, 4096), (4096, 4096), (11008, 4096), (4096, 11008), (576, 576))
    for rows, cols in shapes:
        splits = set()
        for batch in (1, 2, 3, 8):
            for dtype in BOUND:
                for major in map(int, KERNELS.values()):
                    given = {"processors": processors, "shared_memory": memory, "major": major}
                    launch = launch_of(recorder, rows, cols, batch, dtype, **given)
                    assert launch.shared <= memory, (rows, cols, batch, dtype, launch)
                    assert rows <= launch.grid[0] * launch.warps * 32 < rows + launch.warps * 32
                    splits.add(launch.grid[1])
        assert len(splits) == 1


def test_many_warps_give_way_to_memory(recorder: Path) -> None:
    for memory, expected in ((227 << 10, Launch((1, 2, 1), 8, 114752)), (110 << 10, Launch((2, 1, 1), 4, 81984))):
        assert launch_of(recorder, 130, 1152, 4, processors=0, shared_memory=memory) == expected


def test_shared_memory_in_the_table_is_what_the_launchers_ask_for(recorder: Path) -> None:
    names = {("8", 1): "binary", ("10", 1): "bf16", ("8", 4): "bf16, batch 3 to 8"}
    for (major, batch), name in names.items():
        launch = launch_of(recorder, 4096, 4096, batch, processors=108, shared_memory=227 << 10, major=int(major))
        assert (launch.warps, launch.shared) == (8, cuda_aot.KERNELS[name].shared())


def test_work_is_spread_evenly(recorder: Path) -> None:
    """Units of the busiest processor, of 108 or 132, where blocks of threads are dealt out in turn."""
    for rows, cols in ((4096, 4096), (11008, 4096), (4096, 11008)):
        for processors, memory in (DEVICES["A100"], DEVICES["H100"]):
            launch = launch_of(recorder, rows, cols, processors=processors, shared_memory=memory)
            tiles, splits, _ = launch.grid
            units = [cols // 128 // splits + (split < cols // 128 % splits) for split in range(splits)]
            dealt = [u for u in units for _ in range(tiles)]
            assert max(sum(dealt[i::processors]) for i in range(processors)) < 1.1 * sum(dealt) / processors


@pytest.mark.parametrize("rows, length", [(1, 1), (3, 64), (2, 65), (5, 200)])
def test_bit_planes(rows: int, length: int, program: Path) -> None:
    bits = torch.rand(rows, length) > 0.5
    words, back = run_bits(program, bits)
    assert torch.equal(words, pack_bits(bits))
    assert torch.equal(back, bits)
