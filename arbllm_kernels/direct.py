"""The short way to the CPU kernels for eager inference: no dispatcher, and the native weight is kept between calls.

arb::linear (ops.py) works everywhere: under autograd, torch.compile, vmap, tracing. It also costs several times what
the product of a small layer takes. `takes` says when nothing but the product is wanted; `product` then computes it from
a `Bound`, which is made again as soon as one of the weight's tensors is another one or lies elsewhere. Content may
change in place, but for `order` and `counts`, which are read once. Oracle: ops.LINEAR.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .ops import PackedArgs, multiply, native_weight


class Bound:
    """A native weight and the tensors it was made from, which it keeps alive. Not copied, not pickled: made anew."""

    __slots__ = ("pointers", "tensors", "weight")

    def __init__(self, args: PackedArgs) -> None:
        self.tensors: tuple[Any, ...] = tuple(args[:-1])
        self.pointers = _pointers(self.tensors)
        self.weight = native_weight(args)

    def fits(self, args: PackedArgs) -> bool:
        """Whether `args` are the same tensors at the same addresses. (Their sizes follow from the layout.)"""
        for mine, theirs in zip(self.tensors, args, strict=False):
            if mine is not theirs:
                return False
        return _pointers(self.tensors) == self.pointers

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _pointers(tensors: tuple[Any, ...]) -> list[int]:
    return [t.data_ptr() for t in tensors if t is not None]


def takes(x: Tensor, device: torch.device) -> bool:
    """Whether x [..., m], already checked, on `device` can go the short way."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and type(x) is Tensor
        and device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and x.is_contiguous()
        and x.numel() < ops.DENSE_BATCH * x.shape[-1]
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def product(x: Tensor, bound: Bound, rows: int) -> Tensor:
    """x [..., m] times the transposed weight: [..., rows] in the dtype of x. `takes` must have agreed."""
    shape = x.shape
    flat = x if x.dtype is torch.float32 else x.to(torch.float32)
    y = flat.new_empty((*shape[:-1], rows))
    multiply(bound.weight, flat, y, flat.numel() // shape[-1])
    return y if x.dtype is torch.float32 else y.to(x.dtype)
