"""The binarization methods in plain torch: one file each, to be read beside the paper; the authority on their results.

`quantize_weight` is the door; `solve` is the same for callers who share one factorized Hessian among several matrices,
`solve_all` for several matrices at once.
"""

from .factor import Factor, corrected, hessian_factor
from .solve import quantize_weight, solve, solve_all, solved_together, solves_together

__all__ = [
    "Factor",
    "corrected",
    "hessian_factor",
    "quantize_weight",
    "solve",
    "solve_all",
    "solved_together",
    "solves_together",
]
