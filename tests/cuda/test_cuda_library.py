"""arbllm_kernels.cuda and the C functions' checks, with the kernels built for the host; and the built _cuda.so.

The host library takes CPU tensors where the real one takes CUDA tensors, so the Python door is tested without a device.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import random_packed
from host import ROOT, compile_host
from test_cuda_host import BOUND, CASES, make_case

from arbllm_kernels import cuda
from arbllm_kernels.errors import InputError
from arbllm_kernels.ops import packed_args
from arbllm_kernels.packed import pack_bits

sys.path.insert(0, str(ROOT / "bench"))
import cuda_aot

gpu = pytest.mark.skipif(not cuda.available(), reason=cuda.unavailable() or "needs a device of sm_80 or later")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> cuda.Library:
    flags = ("-O1", "-shared", "-fPIC", "-fvisibility=hidden")
    return cuda.Library(compile_host(tmp_path_factory.mktemp("cuda") / "host.so", flags))


@pytest.mark.parametrize("name", ["arb-rc+cgb", "nothing salient", "8-bit row scales, all salient", "plain: block 37"])
def test_linear_and_dequantize(name: str, library: cuda.Library) -> None:
    pw, x = make_case(name)
    args = packed_args(pw)
    y, dense = library.linear(x[None], args, 0), pw.dequantize()
    assert torch.equal(library.dequantize(args, 0), dense)
    exact, scale = x.double() @ dense.double().T, x.double().abs() @ dense.double().abs().T
    assert y.shape == (1, len(x), pw.shape[0]) and y.dtype == x.dtype
    assert (y[0].double() - exact).abs().le(BOUND[x.dtype] * scale).all()
    assert library.is_fast(args) is not name.startswith("plain")


@pytest.mark.parametrize("name", CASES)
def test_is_fast_by_layout(name: str, library: cuda.Library) -> None:
    args = packed_args(make_case(name)[0])
    assert cuda.is_fast_layout(*args) is library.is_fast(args) is not name.startswith("plain")


def test_no_rows(library: cuda.Library) -> None:
    pw = random_packed(8, 128)
    assert library.linear(torch.empty(0, 128), packed_args(pw), 0).shape == (0, 8)


def test_bits(library: cuda.Library) -> None:
    bits = torch.rand(2, 3, 70) > 0.5
    words = library.pack_bits(bits, 0)
    assert torch.equal(words, pack_bits(bits))
    assert torch.equal(library.unpack_bits(words, 70, 0), bits)
    with pytest.raises(InputError, match="4 words do not hold 200 bits"):
        library.unpack_bits(words, 200, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sign": torch.zeros(8, 2, dtype=torch.int32)}, "sign does not have the size"),
        ({"row_scale": torch.zeros(8, 1, 5, dtype=torch.float16)}, "row_scale does not have the size"),
        ({"second": torch.zeros(3, dtype=torch.int32)}, "second does not have the size"),
        ({"sign": torch.zeros(8, 4)}, "sign is torch.float32"),
        ({"col_scale": torch.zeros(2, 128)}, "col_scale is torch.float32"),
        ({"col_scale2": None}, "col_scale2 does not have the size"),
        ({"groups": 3}, "groups is not 1, 2 or 4"),
        ({"block_size": 0}, "block_size is outside"),
        ({"exponent": 200}, "exponent is outside"),
        ({"rows": 9}, "sign does not have the size"),
    ],
)
def test_wrong_weights_are_refused(change: dict[str, Any], message: str, library: cuda.Library) -> None:
    pw = random_packed(8, 128, salient=0.25)
    sizes = list(packed_args(pw)[-1])
    parts = {name: value for name, value in change.items() if name not in cuda.SIZES}
    for name in change.keys() - parts.keys():
        sizes[cuda.SIZES.index(name)] = change[name]
    args = (*packed_args(dataclasses.replace(pw, **parts))[:-1], sizes)
    with pytest.raises(InputError, match=message):
        library.linear(torch.randn(1, 128), args, 0)


def test_bad_order_and_counts_read_nothing_outside(library: cuda.Library) -> None:
    """The host cannot look at them on a device; the kernels clamp them. (AddressSanitizer sees the rest.)"""
    pw = random_packed(8, 128, salient=0.25)
    *args, sizes = packed_args(pw)
    args[8] = torch.full_like(args[8], -5)
    args[9] = torch.full_like(args[9], 1 << 30)
    assert library.linear(torch.randn(1, 128), (*args, sizes), 0).shape == (1, 8)


def test_no_device_no_kernel() -> None:
    if torch.cuda.is_available():
        assert cuda.available() == (cuda.unavailable() is None)
    else:
        assert not cuda.available()
        assert cuda.unavailable() in (
            "torch finds no CUDA device",
            "this build has no CUDA kernels: install nvcc and build again with ARBLLM_CUDA=1",
        )


built = pytest.mark.skipif(not cuda.PATH.exists(), reason="this build has no CUDA kernels (nvcc was not found)")


@built
def test_the_object_loads_without_a_driver() -> None:
    library = cuda.library()
    assert library.is_fast(packed_args(random_packed(8, 128)))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"CUDA driver|no CUDA-capable device"):
            library.linear(torch.randn(1, 128), packed_args(random_packed(8, 128)), 0)


@built
def test_the_object_needs_no_cuda_library() -> None:
    needed = subprocess.run(["ldd", str(cuda.PATH)], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in needed and "torch" not in needed


@built
@pytest.mark.skipif(cuda_aot.cuobjdump() is None, reason="needs cuobjdump, of a CUDA toolkit or of Triton's wheel")
@pytest.mark.skipif(cuda_aot.nvcc_release() != cuda_aot.table()["nvcc"], reason="the table is of another nvcc")
def test_compiled_kernels_are_no_worse_than_the_table() -> None:
    found = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "cuda_aot.py"), "--check"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


@built
@pytest.mark.skipif(cuda_aot.cuobjdump() is None, reason="needs cuobjdump, of a CUDA toolkit or of Triton's wheel")
def test_no_clamp_answers_a_comparison() -> None:
    """ptxas 13.0 takes the predicate of VIMNMX.RELU for "at the upper bound"; an H200 sets it otherwise."""
    code = subprocess.run([cuda_aot.cuobjdump(), "-sass", str(cuda.PATH)], capture_output=True, text=True, check=True)
    assert "Function : " in code.stdout
    assert not re.findall(r"VIMNMX\S*RELU R\d+, P\d.*", code.stdout)


def test_the_ratchet_sees_a_worse_kernel() -> None:
    row = next(row for row in cuda_aot.table()["rows"] if row["instructions"] is not None)
    assert cuda_aot.worse([row], [row]) == []
    for key in ("registers", "spills", "stack", "shared", "instructions", "integer", "shared_bytes", "global_bytes"):
        now = {**row, key: row[key] + 1}
        name = f"{row['kernel']} on sm_{row['arch']}, {row['unit']}"
        assert cuda_aot.worse([now], [row]) == [f"{name}: {key} {row[key]} -> {now[key]}"]
    assert cuda_aot.worse([{**row, "unit": "another"}], [row])[0].endswith("run bench/cuda_aot.py")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_device(name: str) -> None:
    pw, x = make_case(name)
    on = pw.to("cuda")
    y, dense = cuda.linear(x.cuda(), *packed_args(on)), pw.dequantize()
    exact, scale = x.double() @ dense.double().T, x.double().abs() @ dense.double().abs().T
    assert (y.cpu().double() - exact).abs().le(BOUND[x.dtype] * scale).all()
    assert torch.equal(cuda.dequantize(*packed_args(on)).cpu(), dense)


@pytest.mark.gpu
@gpu
def test_in_a_graph() -> None:
    pw = random_packed(256, 4096, salient=0.08).to("cuda")
    x, args = torch.randn(1, 4096, device="cuda").half(), packed_args(pw)
    before = cuda.linear(x, *args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cuda.linear(x, *args)
    x.neg_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, -before)
