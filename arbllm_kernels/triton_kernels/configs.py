"""Every tile size and launch option of every kernel: the one place to tune.

The defaults need no tuning run. They come from counting: registers and occupancy as compiled (docs/gpu-kernels.md),
enough programs for a hundred SMs at 4096 rows. `enable_fp_fusion` is always explicit, because Triton's default changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton

from ..errors import InputError
from ..gpu import MAX_SOLVER_BLOCK


@dataclass(frozen=True)
class RowConfig:
    """A solver kernel: tiles of `rows` rows, at most `max_parts` programs along the rows."""

    rows: int
    num_warps: int
    max_parts: int = 1 << 16
    parts_at_once: int = 1
    chunk: int = 32  # columns of S at a time
    candidates: int = 9  # of the partition search, per program
    fusion: bool = True

    def parts(self, n: int) -> tuple[int, int]:
        """(programs along the rows, tiles of each) for n rows."""
        tiles = -(-n // self.rows)
        each = -(-tiles // self.max_parts)
        return -(-tiles // each), each

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": self.fusion}


SENSITIVITY = RowConfig(rows=16, num_warps=4, max_parts=256, fusion=False)
SEARCH = RowConfig(rows=16, num_warps=4)
OUTPUT_SEARCH = RowConfig(rows=16, num_warps=4)
CHOICE = RowConfig(rows=16, num_warps=4, parts_at_once=16, fusion=False)
ROUNDING = RowConfig(rows=16, num_warps=4, max_parts=256, fusion=False)
ARB = RowConfig(rows=16, num_warps=4)
ARB_X = RowConfig(rows=16, num_warps=4)
ARB_RC = RowConfig(rows=16, num_warps=4, max_parts=64, parts_at_once=16)


def column_tile(k: int) -> int:
    """Columns of the register tile for blocks of k columns: a power of two. Raises InputError for wider blocks."""
    if k > MAX_SOLVER_BLOCK:
        raise InputError(
            f"backend 'triton' solves blocks of up to {MAX_SOLVER_BLOCK} columns, got {k}: use backend='torch'"
        )
    return max(16, int(triton.next_power_of_2(k)))
