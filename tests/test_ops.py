"""torch.library ops: opcheck, gradients, torch.compile, dense path, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import random_packed

from arbllm_kernels import cpu, ops
from arbllm_kernels.errors import InputError
from arbllm_kernels.packed import PackedWeight


def make(**options: Any) -> PackedWeight:
    return random_packed(12, 70, 32, **options)


@pytest.mark.parametrize("options", [{}, {"mean": True, "col_scale": False}, {"salient_order": 1, "groups": 1}])
def test_opcheck(options: dict[str, Any]) -> None:
    args = ops.packed_args(make(**options))
    torch.library.opcheck(torch.ops.arb.linear.default, (torch.randn(2, 3, 70, requires_grad=True), *args))
    torch.library.opcheck(torch.ops.arb.linear_input_grad.default, (torch.randn(2, 12, requires_grad=True), *args))
    torch.library.opcheck(torch.ops.arb.dequantize.default, args)


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("dense_batch", [1, 1000])
def test_packed_and_dense_paths_agree_with_dequantize(
    batch: int, dense_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "dense_batches", lambda *_: (dense_batch,) * 3)
    monkeypatch.setattr(cpu, "TILE_WEIGHTS", 300)  # several tiles, the last one shorter
    pw = make()
    x = torch.randn(batch, 70)
    expected = x.double() @ pw.dequantize().double().T
    torch.testing.assert_close(torch.ops.arb.linear(x, *ops.packed_args(pw)).double(), expected, rtol=1e-5, atol=1e-4)


def test_gradient_of_x_is_dy_times_w(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "TILE_WEIGHTS", 300)
    pw = make()
    args = ops.packed_args(pw)
    x = torch.randn(2, 3, 70, requires_grad=True)
    dy = torch.randn(2, 3, 12, requires_grad=True)
    (dx,) = torch.autograd.grad(torch.ops.arb.linear(x, *args), x, dy, create_graph=True)
    torch.testing.assert_close(dx, dy @ pw.dequantize(), rtol=1e-5, atol=1e-4)
    # The op is linear, so the gradient of its gradient is the op itself.
    direction = torch.randn_like(x)
    (ddy,) = torch.autograd.grad(dx, dy, direction)
    torch.testing.assert_close(ddy, direction @ pw.dequantize().T, rtol=1e-5, atol=1e-4)


def test_compiles_without_graph_breaks_and_with_gradients() -> None:
    pw = make()
    args = ops.packed_args(pw)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (torch.ops.arb.linear(x, *args) * 2).sum()

    x = torch.randn(3, 70, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    compiled(x).backward()
    torch.testing.assert_close(x.grad, 2 * torch.ones(3, 12) @ pw.dequantize(), rtol=1e-5, atol=1e-4)


def test_fake_shapes_and_dtypes() -> None:
    pw = make().to("meta")
    args = (*(t.to("meta") if isinstance(t, torch.Tensor) else t for t in ops.packed_args(make())[:-1]),)
    sizes = ops.layout_sizes(pw.layout)
    y = torch.ops.arb.linear(torch.empty(4, 2, 70, dtype=torch.bfloat16, device="meta"), *args, sizes)
    assert y.shape == (4, 2, 12) and y.dtype == torch.bfloat16
    assert torch.ops.arb.dequantize(*args, sizes).shape == (12, 70)


def test_wrong_last_dimension_and_device_are_refused() -> None:
    args = ops.packed_args(make())
    with pytest.raises(InputError, match=r"\[2, 35\]: the last dimension must be 70"):
        torch.ops.arb.linear(torch.randn(2, 35), *args)
    with pytest.raises(InputError, match=r"no kernel for device mps:0 .* kernels for: cpu, cuda\. Move the model"):
        ops.check_device("arb.linear", torch.device("mps:0"))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("sign", torch.Tensor.long, r"sign is torch.int64 \[12, 4\] on cpu; must be contiguous torch.int32"),
        ("sign", lambda t: t.t().contiguous().t(), r"sign is torch.int32 \[12, 4\] on cpu, not contiguous"),
        ("row_scale", torch.Tensor.float, "mean is torch.float16 .* torch.float32 on the CPU, the scales all of one"),
        ("row_scale", torch.Tensor.double, "row_scale is torch.float64 .* must be contiguous float16 or float32"),
        ("col_scale2", torch.Tensor.bfloat16, "col_scale2 is torch.bfloat16"),
        ("order", torch.Tensor.long, "order is torch.int64"),
        ("counts", torch.Tensor.long, "counts is torch.int64"),
        ("second", lambda t: t.to("meta"), "second is on meta, other tensors of the call on cpu; move it"),
    ],
)
def test_parts_that_the_native_code_would_misread_are_refused(part: str, change: Any, message: str) -> None:
    args = list(ops.packed_args(make(mean=True)))
    args[cpu.VIEWED.index(part)] = change(args[cpu.VIEWED.index(part)])
    with pytest.raises(InputError, match=message):
        ops.LINEAR(torch.randn(2, 70), *args)
    with pytest.raises(InputError, match=message):
        ops.DEQUANTIZE(*args)


def test_the_product_may_be_modified_in_place_under_autograd() -> None:
    """As models do that add a residual to a projection: the output must not be a view of something else."""
    args = ops.packed_args(make())
    x = torch.randn(2, 3, 70, requires_grad=True)
    y = torch.ops.arb.linear(x, *args)
    before = y.detach().clone()
    y += 1.0
    assert torch.equal(y, before + 1.0)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
