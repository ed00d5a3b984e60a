"""Dense products on the CPU by oneDNN, which torch brings along, where that is faster than what torch.mm calls.

On x86 torch multiplies float32 matrices with MKL, which takes a Zen 4 to 70 to 85 % of what it can do with 512 rows on
two cores and to 35 % with 32; oneDNN to 93 and 68 % (docs/cpu-kernels.md). So it is taken on AMD's processors with
AVX-512; on others nothing was measured, and MKL stays. The operators are those that code compiled by torch calls.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .capture import forward_replaced
from .native import available_isas, extension

_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


def built() -> bool:
    """Whether this torch has oneDNN's products, switched on (torch.backends.mkldnn)."""
    oneDNN = torch.backends.mkldnn
    switched_on = oneDNN.is_available() and bool(oneDNN.enabled)
    return switched_on and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


def faster() -> bool:
    """Whether they are taken."""
    return built() and _gains()


@functools.cache
def _gains() -> bool:
    return bool(extension.is_amd()) and available_isas().get("avx512", False)


def bfloat16_products() -> bool:
    """Whether products of bfloat16 matrices are faster than those of float32 ones: twice, with AVX512_BF16 (Zen 4)."""
    return faster() and _gains_by_bfloat16()


@functools.cache
def _gains_by_bfloat16() -> bool:
    # oneDNN may have been told to do without what the processor has (ONEDNN_MAX_CPU_ISA).
    return bool(extension.has_avx512bf16()) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def multiply(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., m] times the transposed W [n, m], plus bias [n], all float32 or all bfloat16: [..., n], no gradients."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, W, bias, "none", [], "")
    return y


@contextlib.contextmanager
def linears_prepared(layer: nn.Module, tokens: int) -> Iterator[None]:
    """Within it the layer's plain float32 linears on the CPU multiply by copies of their weights in oneDNN's own order.

    A copy is made by a linear's first call, and again when torch counts that its weight was written to. `tokens`: how
    many a call usually brings.
    """
    with contextlib.ExitStack() as stack:
        for module in layer.modules() if faster() else ():
            if type(module) is not nn.Linear or "forward" in module.__dict__ or "weight" not in module._parameters:
                continue
            if _is_plain(module.weight):
                stack.enter_context(forward_replaced(module, _forward(module, tokens)))
        yield


def _is_plain(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0


def _forward(linear: nn.Linear, tokens: int) -> Any:
    original = linear.forward
    made_of: tuple[int, int] | None = None
    copy = torch.empty(0)

    def forward(input: Tensor) -> Tensor:
        nonlocal made_of, copy
        if not _is_plain(input):
            return original(input)
        weight = linear.weight.detach()
        if made_of != (weight.data_ptr(), weight._version):
            made_of = weight.data_ptr(), weight._version
            copy = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
        return multiply(input, copy, linear.bias)

    return forward
