"""Dense products by oneDNN: against float64 and torch's own, in the layer loop's linears and in long batches."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import tiny
import torch
from helpers import random_packed
from torch import nn

from arbllm_kernels import cpu, onednn, ops
from arbllm_kernels.config import QuantConfig
from arbllm_kernels.linear import linear
from arbllm_kernels.native import extension
from arbllm_kernels.pipeline import quantize_model

pytestmark = pytest.mark.skipif(not onednn.built(), reason="this torch was built without oneDNN")

needs_bfloat16 = pytest.mark.skipif(
    not (onednn.built() and torch.ops.mkldnn._is_mkldnn_bf16_supported()), reason="oneDNN has no bfloat16 here"
)
BFLOAT16 = pytest.param(True, True, marks=needs_bfloat16)
SHAPES = [(1,), (1, 1), (3, 1), (0,), (2, 0), (64,), (2, 3)]  # of x, without its last dimension


def with_products(monkeypatch: pytest.MonkeyPatch, faster: bool, bfloat16: bool = False) -> list[int]:
    """Whether oneDNN's are taken, and in bfloat16 too. The list gets an entry for each."""
    calls: list[int] = []
    multiply = onednn.multiply

    def counted(*args: torch.Tensor | None) -> torch.Tensor:
        calls.append(1)
        return multiply(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(onednn, "multiply", counted)
    monkeypatch.setattr(onednn, "faster", lambda: faster)
    monkeypatch.setattr(onednn, "bfloat16_products", lambda: bfloat16)
    return calls


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_multiply_is_the_product(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, W = torch.randn(*shape, 70).to(dtype), torch.randn(13, 70).to(dtype)
    y = onednn.multiply(x, W)
    assert y.dtype is dtype and y.shape == (*shape, 13)
    rtol = 1e-5 if dtype is torch.float32 else 2**-7
    torch.testing.assert_close(y.double(), x.double() @ W.double().T, rtol=rtol, atol=1e-4)


class Odd(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_prepared_linears_give_the_same_and_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    with_products(monkeypatch, True)
    layer = nn.ModuleDict({"a": nn.Linear(70, 13), "b": nn.Linear(13, 5, bias=False), "odd": Odd(70, 3)})
    seen: list[str] = []
    layer["a"].register_forward_pre_hook(lambda *_: seen.append("a"))
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(*shape, 70)
            a = layer["a"](x)
            expected = a, layer["b"](a), layer["odd"](x)
            seen.clear()
            with onednn.linears_prepared(layer, 64):
                assert "forward" in layer["a"].__dict__ and "forward" not in layer["odd"].__dict__
                a = layer["a"](x)
                got = a, layer["b"](a), layer["odd"](x)
                assert layer["a"](x).dtype is torch.float32 and seen == ["a", "a"]
                assert torch.equal(layer["a"](input=x), a)
                with pytest.raises(RuntimeError):  # what is not float32 meets the linear as it is
                    layer["a"](x.double())
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert all("forward" not in module.__dict__ for module in layer.values())


def test_a_weight_that_is_written_to_is_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with_products(monkeypatch, True)
    linear, x = nn.Linear(70, 13, bias=False), torch.randn(5, 70)
    with torch.no_grad(), onednn.linears_prepared(linear, 5):
        before = linear(x)
        linear.weight.mul_(2)
        torch.testing.assert_close(linear(x), 2 * before)
        linear.weight.data = torch.ones(13, 70)
        torch.testing.assert_close(linear(x), x.sum(1, keepdim=True).expand(5, 13), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("faster", [False, True])
def test_the_layer_loop_takes_them(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, model = with_products(monkeypatch, faster), tiny.llama()
    quantize_model(model, torch.randint(0, 100, (2, 16)), QuantConfig(block_size=32, iters=1), progress=False)
    assert bool(calls) is faster


def test_linears_are_prepared_only_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    with_products(monkeypatch, False)
    layer = nn.Sequential(nn.Linear(4, 4))
    with onednn.linears_prepared(layer, 64):
        assert "forward" not in layer[0].__dict__


@pytest.mark.parametrize("faster,bfloat16", [(False, False), (True, False), BFLOAT16])
@pytest.mark.parametrize("tile", [300, 7000, 1 << 22], ids=["tiles", "tiles of 64 rows", "one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_batches(
    faster: bool, bfloat16: bool, tile: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, rows = with_products(monkeypatch, faster, bfloat16), 100 if tile == 7000 else 13
    monkeypatch.setattr(cpu, "TILE_WEIGHTS", tile)
    monkeypatch.setattr(cpu, "dense_batches", lambda *_: (0, 0, 0))
    for options in ({}, {"mean": True, "col_scale": False}, {"groups": 4}):
        for shape in SHAPES:  # few rows of x and many: columns of x or of W are permuted
            pw, x = random_packed(rows, 70, 32, **options), torch.randn(*shape, 70).to(dtype)
            W = pw.dequantize()
            W = W.to(dtype) if bfloat16 and dtype is torch.bfloat16 else W
            expected = x.double() @ W.double().T
            got = linear(x, pw)
            assert got.dtype is dtype and got.shape == expected.shape
            rtol = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
            torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=1e-4)
    assert bool(calls) is faster


@pytest.mark.parametrize("faster,bfloat16", [(False, False), (True, False), BFLOAT16])
@pytest.mark.parametrize("tile", [300, 1 << 22], ids=["tiles", "one"])
def test_a_result_may_be_changed_in_place_under_autograd(
    faster: bool, bfloat16: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_products(monkeypatch, faster, bfloat16)
    monkeypatch.setattr(cpu, "TILE_WEIGHTS", tile)
    monkeypatch.setattr(cpu, "dense_batches", lambda *_: (0, 0, 0))
    pw = random_packed(13, 70)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, 70, dtype=dtype, requires_grad=True)
        y = torch.ops.arb.linear(x, *ops.packed_args(pw))
        y += 1
        y.sum().backward()
        assert x.grad is not None and x.grad.dtype is dtype


def flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {word for line in lines if line.startswith(("flags", "vendor_id")) for word in line.split()}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks an x86 processor")
def test_processors_are_told_apart() -> None:
    assert extension.is_amd() is ("AuthenticAMD" in flags())
    assert extension.has_avx512bf16() is ("avx512_bf16" in flags())


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("library", [False, True])
def test_they_are_taken_where_they_gain_and_are_switched_on(
    amd: bool, processor: bool, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn.extension, "is_amd", lambda: amd)
    monkeypatch.setattr(onednn.extension, "has_avx512bf16", lambda: processor)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
    monkeypatch.setattr(onednn, "available_isas", lambda: {"avx512": True})
    for cached in (onednn._gains, onednn._gains_by_bfloat16):
        monkeypatch.setattr(onednn, cached.__name__, cached.__wrapped__)
    assert (onednn.faster(), onednn.bfloat16_products()) == (amd, amd and processor and library)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not onednn.faster() and not onednn.bfloat16_products()


@pytest.mark.parametrize("faster,bfloat16", [(False, False), (True, False), (True, True)])
def test_limits_are_of_what_multiplies(faster: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_products(monkeypatch, faster, bfloat16)
    monkeypatch.setattr(cpu, "active_isa", lambda: "avx512vbmi")
    for way, layout in (("repacked", {}), ("line", {"block_size": 2048, "shared": True, "coded": True})):
        for cols in (576, 2048):
            packed = cpu.view(ops.packed_args(random_packed(3, cols, **layout)))
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                dense = "onednn" if faster else "mkl"
                dense = "bfloat16" if bfloat16 and dtype is torch.bfloat16 else dense
                expected = cpu.DENSE_BATCHES[way, True, dense][cols == 2048]
                assert cpu.dense_batches(packed, True, dtype) == expected


def test_x_in_bfloat16_has_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    dense: list[torch.dtype] = []

    def spy(x: torch.Tensor, *_: object) -> torch.Tensor:
        dense.append(x.dtype)
        return x

    monkeypatch.setattr(cpu, "dense_product", spy)
    few, many = (3, 3, 3), (9, 9, 9)
    monkeypatch.setattr(cpu, "dense_batches", lambda packed, copies, dtype: few if dtype is torch.bfloat16 else many)
    pw = random_packed(13, 70)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for batch in (2, 3, 8, 9):
            linear(torch.randn(batch, 70).to(dtype), pw)
    assert dense == [torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float16]
