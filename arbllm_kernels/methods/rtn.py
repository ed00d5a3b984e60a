"""Round to nearest: asymmetric min-max quantization in groups, the plainest baseline.

Only simulated: the result is a dense matrix with the values a file would give, and the bits it would take.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Simulated:
    """The weights [n, m] as quantized, and what storing them takes per weight, scales and zero points included."""

    weight: Tensor
    bits_per_weight: float


def grid(part: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, lowest level) of each row of [n, g]: 2^bits steps of an fp16 scale from minimum to maximum, 0 inside."""
    low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=torch.finfo(torch.float16).tiny)
    return scale, (low / scale).round().clamp(1 - 2**bits, 0)


def nearest(part: Tensor, scale: Tensor, low: Tensor, bits: int) -> Tensor:
    """The nearest level of each weight; scale and low broadcast to `part`."""
    return ((part / scale).round() - low).clamp(0, 2**bits - 1).add(low) * scale


def stored_bits(cols: int, bits: int, group: int) -> float:
    """Bits per weight: the codes, and per group and row an fp16 scale and a zero point of `bits` bits."""
    return bits + (16 + bits) * -(-cols // group) / cols


def rtn(W: Tensor, bits: int, group: int = 128) -> Simulated:
    """Quantize a matrix [n, m] in groups of `group` columns of a row."""
    parts = []
    for part in W.float().split(group, 1):
        scale, low = grid(part, bits)
        parts.append(nearest(part, scale[:, None], low[:, None], bits))
    return Simulated(torch.cat(parts, 1), stored_bits(W.shape[1], bits, group))
