"""The short way to the CPU kernels for eager inference: no dispatcher, and the native weight is kept between calls.

arb::linear (ops.py) works everywhere: under autograd, torch.compile, vmap, tracing. It also costs several times what
the product of a small layer takes. Where nothing but the product is wanted, `product` computes it from an
extension.Bound (python/direct_bindings.cpp), which is made again as soon as one of the weight's tensors is another one
or lies elsewhere; it gives long batches to ops.dense_product. Content may change in place, but for `order` and
`counts`, which are read once; a repacked weight is made again after that. Oracle: ops.LINEAR.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from . import ops
from .native import activations, extension, repack
from .ops import NOT_COVERED, PackedArgs, view

PLAIN = (Tensor, torch.nn.Parameter, type(None))  # what has memory of its own, or is not there


def product(x: Tensor, args: PackedArgs, bound: Any) -> tuple[Tensor | None, Any]:
    """x [..., m] times the transposed weight, [..., n] in the dtype of x, and what to pass as `bound` next time.

    `bound` is None at first. The product is None where ops.LINEAR has to be called, which also explains wrong inputs.
    """
    if torch.compiler.is_compiling():
        return None, bound
    int8, threads, copies = activations() == "int8", torch.get_num_threads(), repack()
    y = NotImplemented if bound is None else bound.product(x, args, int8, threads, copies)
    if y is NotImplemented:
        if args[0].device.type != "cpu" or any(type(t) not in PLAIN for t in args[:-1]):
            return None, None
        bound = _bind(args, copies)
        y = bound.product(x, args, int8, threads, copies)
    return y, bound


def _bind(args: PackedArgs, copies: bool) -> Any:
    packed = view(args)
    # Of the instruction set in use now: forcing another one later changes when W is dequantized, not the results.
    limits = ops.dense_batches(packed, args[-1][1], copies)
    dense = lambda x: ops.dense_product(x, args, packed)  # noqa: E731
    return extension.Bound(tuple(args[:-1]), packed, copies, limits, _warn, dense)


def _warn() -> None:
    warnings.warn(NOT_COVERED, stacklevel=5)
