"""linear and ARBLinear: values, dtypes, conversions, state, refusals."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import random_packed
from torch import nn

from arbllm_kernels import cpu, native
from arbllm_kernels.errors import InputError
from arbllm_kernels.linear import ARBLinear, linear
from arbllm_kernels.packed import PARTS


def make_layer(seed: int = 0, **options: object) -> ARBLinear:
    bias = torch.randn(12) if options.pop("bias", True) else None
    return ARBLinear(random_packed(12, 70, 32, seed=seed, **options), bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(70,), (0, 70), (1, 70), (2, 0, 70), (2, 3, 70), (40, 70)])
def test_linear_equals_the_dense_layer(shape: tuple[int, ...]) -> None:
    pw, bias, x = random_packed(12, 70, 32), torch.randn(12), torch.randn(shape)
    y = linear(x, pw, bias)
    assert y.shape == (*shape[:-1], 12)
    torch.testing.assert_close(y, F.linear(x, pw.dequantize(), bias), rtol=1e-5, atol=1e-4)


def test_packed_follows_what_was_written_before_refresh() -> None:
    layer, other = (ARBLinear(random_packed(12, 70, 32, ordered=True, seed=seed)) for seed in (0, 1))
    assert layer.packed.order is layer.order
    layer.columns.copy_(other.columns)
    layer._buffers["salient"] = other.salient.clone()
    assert torch.equal(layer.packed.order, other.order) and torch.equal(layer.packed.salient_counts, other.counts)
    layer.refresh()
    assert layer.packed.order is layer.order and torch.equal(layer.order, other.order)


def test_non_contiguous_x() -> None:
    pw, x = random_packed(12, 70, 32), torch.randn(70, 5).t()
    assert not x.is_contiguous()
    assert torch.equal(linear(x, pw), linear(x.contiguous(), pw))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_x_is_computed_in_float32(dtype: torch.dtype) -> None:
    layer, x = make_layer(bias=False), torch.randn(3, 70).to(dtype)
    with native.forced_repack(False):
        assert torch.equal(layer(x), layer(x.float()).to(dtype))


@pytest.mark.parametrize(("batch", "tile"), [(1, 1 << 22), (5, 1 << 22), (40, 1 << 22), (40, 1000)])
@pytest.mark.parametrize("where", ["meta", "autocast"])
def test_the_surroundings_change_nothing(batch: int, tile: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default device other than the CPU, and autocast: products stay on the CPU and in float32, in any tiles."""
    monkeypatch.setattr(cpu, "TILE_WEIGHTS", tile)
    pw, x = random_packed(33, 200), torch.randn(batch, 200)
    layer, dense = ARBLinear(pw), pw.dequantize()
    around = torch.device("meta") if where == "meta" else torch.autocast("cpu", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = layer(x)
        with around:
            found = layer(x)
            through_op = linear(x, pw)
    assert torch.equal(found, expected) and torch.equal(through_op, expected)
    leaf = x.clone().requires_grad_()
    with around:
        layer(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, dense.sum(0).expand(batch, -1), rtol=1e-5, atol=1e-4)


def test_wrong_inputs_name_the_fault() -> None:
    layer = make_layer()
    with pytest.raises(InputError, match=r"x \[2, 71\] times a packed weight \[12, 70\]: .* must be 70"):
        layer(torch.randn(2, 71))
    with pytest.raises(InputError, match=r"x is torch.float64: .* convert x first"):
        layer(torch.randn(2, 70).double())
    with pytest.raises(InputError, match="x is on meta, the packed weight on cpu"):
        layer(torch.randn(2, 70, device="meta"))
    with pytest.raises(InputError, match=r"bias \[11\] does not fit 12 rows"):
        ARBLinear(layer.packed, torch.zeros(11))


def test_what_is_no_tensor_weight_or_bias_is_refused() -> None:
    pw, x = random_packed(12, 70, 32), torch.randn(2, 70)
    with pytest.raises(InputError, match=r"x is ndarray, must be a tensor \[\.\.\., 70\]"):
        linear(x.numpy(), pw)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="linear: pw is Tensor, must be a PackedWeight"):
        linear(x, pw.dequantize())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ARBLinear: pw is Tensor, must be a PackedWeight"):
        ARBLinear(pw.dequantize())  # type: ignore[arg-type]
    for bias, message in [
        (torch.zeros(1), r"bias \[1\] does not fit 12 rows; must be \[12\]"),
        (torch.zeros(2, 12), r"bias \[2, 12\] does not fit"),
        (torch.zeros(12, dtype=torch.int32), r"bias \[12\] is torch.int32, must be floating point"),
        ([0.0] * 12, r"bias is list, must be a floating-point tensor \[12\]"),
    ]:
        with pytest.raises(InputError, match=f"linear: {message}"):
            linear(x, pw, bias)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"ARBLinear: {message}"):
            ARBLinear(pw, bias)  # type: ignore[arg-type]


def test_conversions_leave_the_format_alone() -> None:
    for dtype in (torch.float16, torch.float32):
        layer = make_layer(dtype=dtype, mean=True)
        before = {name: t.clone() for name, t in layer.packed.tensors().items()}
        for convert in (layer.half, layer.bfloat16, layer.float, layer.double):
            convert()
            assert all(torch.equal(t, before[name]) for name, t in layer.packed.tensors().items())
            assert all(t.dtype == before[name].dtype for name, t in layer.packed.tensors().items())
        assert layer.bias is not None and layer.bias.dtype == torch.float64
        layer.to("meta", torch.bfloat16)
        assert layer.bias.dtype == torch.bfloat16
        assert {t.device.type for t in layer.buffers()} == {"meta"}
        assert layer.row_scale.dtype == dtype


def test_bias_follows_the_dtype_of_x() -> None:
    assert make_layer()(torch.randn(2, 70).bfloat16()).dtype == torch.bfloat16


def test_state_dict_holds_the_parts_and_loads_both_ways() -> None:
    source, other = make_layer(0), make_layer(1, salient=0.25)
    same_shape = make_layer(2, salient=0.25)
    assert set(source.state_dict()) == {*source.packed.tensors(), "bias"}
    assert set(source.packed.tensors()) <= set(PARTS)
    x = torch.randn(2, 70)
    same_shape.load_state_dict(other.state_dict())
    assert torch.equal(same_shape(x), other(x))
    assert same_shape.sign.data_ptr() != other.sign.data_ptr()
    shell = ARBLinear.empty(
        source.layout, source.packed.salient_columns, mean=False, col_scale=True, bias_dtype=torch.float32
    )
    assert shell.sign.device.type == "meta"
    shell.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(shell(x), source(x))
    assert shell.sign.data_ptr() == source.sign.data_ptr()


def test_an_empty_layer_takes_the_parts_of_format_2() -> None:
    source = ARBLinear(random_packed(12, 70, 32, shared=True, coded=True, ordered=True))
    shell = ARBLinear.empty(
        source.layout, source.packed.salient_columns, mean=False, col_scale=True, coded=True, ordered=True
    )
    shell.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(shell.packed.dequantize(), source.packed.dequantize())
    assert torch.equal(shell.order, source.order) and torch.equal(shell.counts, source.counts)


def test_loading_another_scale_dtype_is_refused() -> None:
    layer, other = make_layer(), make_layer(dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"row_scale: torch.float32 in the state dict, torch.float16 in this layer"):
        layer.load_state_dict(other.state_dict())


def test_pickle_deepcopy_and_repr() -> None:
    layer, x = make_layer(), torch.randn(2, 70)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert twin.layout == layer.layout
    assert f"bits_per_weight={layer.packed.bits_per_weight:.3f}" in repr(layer)
    assert "method=arb-rc" in repr(layer) and "in_features=70, out_features=12" in repr(layer)


def test_dequantize_and_packed_share_the_buffers() -> None:
    layer = make_layer()
    assert torch.equal(layer.dequantize(), layer.packed.dequantize())
    assert layer.packed.sign.data_ptr() == layer.sign.data_ptr()


def test_gradients_reach_x_and_nothing_else() -> None:
    layer, x = make_layer(), torch.randn(2, 70, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones(2, 12) @ layer.dequantize(), rtol=1e-5, atol=1e-4)
    assert all(not p.requires_grad for p in layer.parameters())


def test_compiles_inside_a_model() -> None:
    model = nn.Sequential(make_layer(), nn.ReLU(), nn.Linear(12, 3))
    compiled, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(2, 70)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("options", [{"block_size": 2048, "shared": True, "coded": True}, {"block_size": 128}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_outlier_in_x_of_16_bits_costs_no_more_than_rounding_y(options: dict[str, Any], dtype: torch.dtype) -> None:
    pw, x = random_packed(128, 4096, **options), torch.randn(4, 4096)
    x[:, 7] = 100.0
    x = x.to(dtype)
    exact = x.double() @ pw.dequantize().double().t()
    rounding = (exact.to(dtype).double() - exact).norm()
    assert float((linear(x, pw).double() - exact).norm()) <= 1.25 * float(rounding)
