"""The short way to the CPU kernels for eager inference: no dispatcher.

arb::linear (ops.py) works everywhere: under autograd, torch.compile, vmap, tracing. It also costs several times what
the product of a small layer takes. Where nothing but the product is wanted, `product` computes it, by the same kept
native weight (cpu.py). Oracle: ops.LINEAR.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu
from .ops import PackedArgs


def product(x: Tensor, args: PackedArgs) -> Tensor | None:
    """x [..., m] times the transposed weight, [..., n] in the dtype of x.

    None where ops.LINEAR has to be called, which also explains wrong inputs.
    """
    return None if torch.compiler.is_compiling() else cpu.product(x, args, True)
