"""Dense products on the CPU by oneDNN, which torch brings along, where that is faster than what torch.mm calls.

On x86 torch multiplies float32 matrices with MKL, which takes AMD's processors to 70 to 85 % of what they can do with
512 rows on two cores and to 35 % with 32; oneDNN to 93 and 68 % (Zen 4, docs/cpu-measured.md). On Intel's own
processors it was not measured, and MKL stays. The two operators are those that code compiled by torch calls.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .capture import forward_replaced
from .native import extension

_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight")


def built() -> bool:
    """Whether this torch has oneDNN's products."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


@functools.cache
def faster() -> bool:
    """Whether this processor gains by them."""
    return built() and bool(extension.is_amd())


def multiply(x: Tensor, W: Tensor) -> Tensor:
    """x [..., m] times the transposed W [n, m], both float32: [..., n], without gradients."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, W, None, "none", [], "")
    return y


@contextlib.contextmanager
def linears_prepared(layer: nn.Module, tokens: int) -> Iterator[None]:
    """Within it the layer's plain float32 linears on the CPU multiply by copies of their weights in oneDNN's own order.

    The weights must not change meanwhile. `tokens`: how many a call usually brings.
    """
    with contextlib.ExitStack() as stack:
        for module in layer.modules() if faster() else ():
            if type(module) is nn.Linear and "forward" not in module.__dict__ and _is_plain(module.weight):
                stack.enter_context(forward_replaced(module, _forward(module, tokens)))
        yield


def _is_plain(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0


def _forward(linear: nn.Linear, tokens: int) -> Any:
    original = linear.forward
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), tokens)

    def forward(x: Tensor) -> Tensor:
        if not _is_plain(x):
            return original(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, linear.bias, "none", [], "")
        return y

    return forward
