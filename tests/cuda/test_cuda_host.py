"""The CUDA kernels' source, compiled as host C++: results against PackedWeight.dequantize, for every kind of layout.

The shim (shim.h) runs one OS thread per CUDA thread with real barriers. It proves neither speed nor what ptxas makes of
the source; test_cuda_ptx.py runs the compiled PTX.
"""

from __future__ import annotations

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
BOUND = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def make_case(name: str) -> tuple[PackedWeight, Tensor]:
    batch, dtype, rows, cols, keywords = CASES[name]
    pw = random_packed(rows, cols, seed=len(name), **{"block_size": 128, **keywords})
    return pw, torch.randn(batch, cols, generator=torch.Generator().manual_seed(1)).to(dtype)


def check(pw: PackedWeight, x: Tensor, answer: Answer) -> None:
    dense = pw.dequantize()
    assert torch.equal(answer.dense, dense)
    exact = x.double() @ dense.double().T
    scale = x.double().abs() @ dense.double().abs().T
    assert (answer.y.double() - exact).abs().le(BOUND[x.dtype] * scale).all()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_host(tmp_path_factory.mktemp("cuda") / "plain")


@pytest.fixture(scope="module")
def answers(program: Path) -> dict[str, Answer]:
    """Every case, run in one process."""
    return dict(zip(CASES, run(program, [make_case(name) for name in CASES]), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str, answers: dict[str, Answer]) -> None:
    check(*make_case(name), answers[name])


def test_rows_do_not_depend_on_the_batch(program: Path) -> None:
    pw, x = make_case("batch 8")
    whole, *single = run(program, [(pw, x), *((pw, x[i : i + 1]) for i in range(len(x)))])
    assert torch.equal(whole.y, torch.cat([one.y for one in single]))


def test_splits_and_warps_change_nothing_but_rounding(program: Path) -> None:
    pw, x = random_packed(130, 1154, 256, salient=0.1), torch.randn(2, 1154).half()
    for processors in ("1", "100"):  # 8 and 4 warps per block of threads
        check(pw, x, run(program, [(pw, x)], SHIM_PROCESSORS=processors)[0])


def test_one_block_of_threads_for_all_columns(program: Path) -> None:
    pw = random_packed(400, 1152, 128)
    x = torch.randn(1, 1152)
    check(pw, x, run(program, [(pw, x)], SHIM_PROCESSORS="1")[0])


@pytest.mark.parametrize(("batch", "dtype"), [(4, torch.float16), (2, torch.float32)])
def test_two_stages_and_two_tiles_fit_in_99_kilobytes(batch: int, dtype: torch.dtype, program: Path) -> None:
    """The shim refuses more, as a device does; 8 warps, which the shape asks for, would need 112 KB."""
    pw, x = random_packed(130, 1152, salient=0.1), torch.randn(batch, 1152).to(dtype)
    check(pw, x, run(program, [(pw, x)], SHIM_PROCESSORS="0")[0])


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
        for batch in (1, 2, 3, 8):
            for dtype in BOUND:
                given = {"processors": processors, "shared_memory": memory}
                launch = launch_of(recorder, rows, cols, batch, dtype, **given)
                assert launch.shared <= memory, (rows, cols, batch, dtype, launch)
                assert rows <= launch.grid[0] * launch.warps * 32 < rows + launch.warps * 32


def test_many_warps_give_way_to_memory(recorder: Path) -> None:
    for memory, expected in ((227 << 10, Launch((1, 1, 1), 8, 114752)), (99 << 10, Launch((2, 1, 1), 4, 81984))):
        assert launch_of(recorder, 130, 1152, 4, processors=0, shared_memory=memory) == expected


def test_shared_memory_in_the_table_is_what_the_launchers_ask_for(recorder: Path) -> None:
    for batch, tiles in ((1, 1), (4, 2)):
        launch = launch_of(recorder, 4096, 4096, batch, processors=108, shared_memory=163 << 10)
        assert (launch.warps, launch.shared) == (4, cuda_aot.shared_bytes(2, tiles))


def test_warps_per_block_are_chosen_by_the_busiest_processor(recorder: Path) -> None:
    found = {}
    for device, (processors, memory) in DEVICES.items():
        launch = launch_of(recorder, 4096, 4096, processors=processors, shared_memory=memory)
        found[device] = (launch.warps, launch.grid)
    assert found["A100"] == (4, (32, 8, 1))  # 8 warps: 128 blocks for 108 processors
    assert found["H100"] == found["RTX 4090"] == (8, (16, 8, 1))


@pytest.mark.parametrize("rows, length", [(1, 1), (3, 64), (2, 65), (5, 200)])
def test_bit_planes(rows: int, length: int, program: Path) -> None:
    bits = torch.rand(rows, length) > 0.5
    words, back = run_bits(program, bits)
    assert torch.equal(words, pack_bits(bits))
    assert torch.equal(back, bits)
