"""torch.library ops on packed weights: arb::linear, arb::linear_input_grad, arb::dequantize.

The ops take the parts of a PackedWeight as flat arguments (see `packed_args`), so that torch.compile, autograd and
opcheck see plain tensors. n = rows, m = cols of the weight W. Their oracle is PackedWeight.dequantize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import cpu, gpu
from .cpu import VIEWED
from .errors import InputError
from .packed import Layout, PackedWeight

PACKED_SCHEMA = (
    "Tensor sign, Tensor group, Tensor second, Tensor row_scale, Tensor? row_base, Tensor? mean, Tensor? col_scale, "
    "Tensor? col_scale2, Tensor order, Tensor counts, int[] sizes"
)
MaybeTensor = Tensor | None
PackedArgs = tuple[
    Tensor, Tensor, Tensor, Tensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, Tensor, Tensor, Sequence[int]
]


def layout_sizes(layout: Layout) -> list[int]:
    """The `sizes` argument of the ops."""
    return [
        layout.rows,
        layout.cols,
        layout.block_size,
        layout.groups,
        layout.salient_groups,
        layout.salient_order,
        layout.exponent,
        int(layout.shared_columns),
    ]


def packed_args(pw: PackedWeight) -> PackedArgs:
    """A PackedWeight as the trailing arguments of every op: its parts, column order, salient counts and sizes."""
    return (
        pw.sign,
        pw.group,
        pw.second,
        pw.row_scale,
        pw.row_base,
        pw.mean,
        pw.col_scale,
        pw.col_scale2,
        pw.order,
        pw.salient_counts,
        layout_sizes(pw.layout),
    )


# The one table of implementations, by device type: (linear, linear_input_grad, dequantize).
IMPLEMENTATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cpu": (cpu.linear, cpu.linear_input_grad, cpu.dequantize),
    "cuda": (gpu.linear, gpu.linear_input_grad, gpu.dequantize),
}


def check_device(what: str, device: torch.device) -> None:
    """Raise InputError where no kernel exists for the device. The meta device passes: nothing is computed there."""
    if device.type not in IMPLEMENTATIONS and device.type != "meta":
        raise InputError(
            f"{what}: no kernel for device {device} in this build, which has kernels for: "
            f"{', '.join(IMPLEMENTATIONS)}. Move the model and its inputs to the CPU, or use PackedWeight.dequantize() "
            "with torch.nn.functional.linear"
        )


# ---- fake implementations: shapes and dtypes only


def _check_one_device(device: torch.device, args: Sequence[Any]) -> None:
    """One meta tensor among CPU tensors brings the call here, where nothing would be computed."""
    for name, t in zip(VIEWED, args, strict=False):
        if t is not None and t.device != device:
            raise InputError(f"packed weight: {name} is on {t.device}, other tensors of the call on {device}; move it")


def _linear_fake(x: Tensor, *args: Any) -> Tensor:
    _check_one_device(x.device, args)
    return x.new_empty(*x.shape[:-1], args[-1][0])


def _linear_input_grad_fake(dy: Tensor, *args: Any) -> Tensor:
    _check_one_device(dy.device, args)
    return dy.new_empty(*dy.shape[:-1], args[-1][1])


def _dequantize_fake(sign: Tensor, *args: Any) -> Tensor:
    _check_one_device(sign.device, (sign, *args))
    return sign.new_empty(args[-1][0], args[-1][1], dtype=torch.float32)


# ---- autograd: both are linear in their first argument, and each is the gradient of the other


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:-1])
    ctx.sizes = inputs[-1]


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = torch.ops.arb.linear_input_grad(dy, *ctx.saved_tensors, ctx.sizes) if ctx.needs_input_grad[0] else None
    return (dx, *[None] * 11)


def _linear_input_grad_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    ddy = torch.ops.arb.linear(ddx, *ctx.saved_tensors, ctx.sizes) if ctx.needs_input_grad[0] else None
    return (ddy, *[None] * 11)


# ---- registration: Library.define/impl; bench/gemv.py --overhead compares its cost per call with custom_op's

_LIBRARY = torch.library.Library("arb", "DEF")
_FAKES = {"linear": _linear_fake, "linear_input_grad": _linear_input_grad_fake, "dequantize": _dequantize_fake}
_UNSUPPORTED_KEYS = ("MPS", "XPU")


def _unsupported(name: str) -> Callable[..., Tensor]:
    def refuse(*args: Any) -> Tensor:
        check_device(f"arb::{name}", args[0].device)
        raise InputError(f"arb::{name}: {args[0].device} tensors reached a kernel of another device")

    return refuse


def _register() -> None:
    _LIBRARY.define(f"linear(Tensor x, {PACKED_SCHEMA}) -> Tensor")
    _LIBRARY.define(f"linear_input_grad(Tensor dy, {PACKED_SCHEMA}) -> Tensor")
    _LIBRARY.define(f"dequantize({PACKED_SCHEMA}) -> Tensor")
    for position, (name, fake) in enumerate(_FAKES.items()):
        for device, functions in IMPLEMENTATIONS.items():
            _LIBRARY.impl(name, functions[position], device.upper())
        for key in _UNSUPPORTED_KEYS:
            _LIBRARY.impl(name, _unsupported(name), key)
        torch.library.register_fake(f"arb::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd("arb::linear", _linear_backward, setup_context=_save_packed, lib=_LIBRARY)
    torch.library.register_autograd(
        "arb::linear_input_grad", _linear_input_grad_backward, setup_context=_save_packed, lib=_LIBRARY
    )


_register()

# The overloads themselves: looking one up through torch.ops.arb costs as much as the dispatch.
LINEAR: Any = torch.ops.arb.linear.default
DEQUANTIZE: Any = torch.ops.arb.dequantize.default
