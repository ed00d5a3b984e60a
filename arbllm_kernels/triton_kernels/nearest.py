"""The nearest of the four levels +-first +-second, by comparison (paper equation 8; oracle: methods.binarize).

With a = max(|first|, |second|) the four levels in ascending order are cut at -a, 0 and a: the larger scale takes the
sign of the target, the smaller the sign of what is left. Two comparisons per entry; no candidate is built and none is
stored. Ties go as in the oracle, to the first of --, -+, +-, ++.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nearest_of_four(target, first, second):
    """(B1, B2) as booleans, True is +1. The scales broadcast to the target; a scale of 0 gives False."""
    f = tl.abs(first)
    s = tl.abs(second)
    larger = tl.maximum(f, s)
    upper = (target > 0) | ((target == 0) & (f > 0) & (f < s))  # -+ comes before +-
    outer = tl.where(upper, target > larger, target > -larger)
    b1 = tl.where(f > s, upper, tl.where(f < s, outer, upper & outer))
    b2 = tl.where(f > s, outer, tl.where(f < s, upper, upper | outer))
    b1 = tl.where(first > 0, b1, (first < 0) & (b1 == 0))
    b2 = tl.where(second > 0, b2, (second < 0) & (b2 == 0))
    return b1, b2


@triton.jit
def signed(plane, value):
    """The value with the sign of a plane."""
    return tl.where(plane, value, -value)
