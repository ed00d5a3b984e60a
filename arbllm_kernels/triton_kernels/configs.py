"""Every tile size and launch option of every kernel: the one place to tune.

The defaults need no tuning run. They come from counting: registers and occupancy as compiled (docs/gpu-compiled.md),
enough programs for a hundred SMs at 4096 rows. `enable_fp_fusion` is always explicit, because Triton's default changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from ..errors import InputError
from ..gpu import MAX_SOLVER_BLOCK

NARROW = 128  # columns of the paper's blocks


@dataclass(frozen=True)
class RowConfig:
    """A solver kernel: tiles of `rows` rows, at most `max_parts` programs along the rows."""

    rows: int
    num_warps: int
    max_parts: int = 1 << 16
    parts_at_once: int = 1
    chunk: int = 32  # columns of S at a time,
    wide_chunk: int = 16  # and where a row is longer than the paper's;
    wide_warps: int = 2  # there so many times the warps
    candidates: int = 9  # of the partition search, per program
    fusion: bool = True

    def parts(self, n: int) -> tuple[int, int]:
        """(programs along the rows, tiles of each) for n rows."""
        tiles = -(-n // self.rows)
        each = -(-tiles // self.max_parts)
        return -(-tiles // each), each

    def chunk_of(self, k: int) -> int:
        """Columns of S at a time for blocks of k."""
        return min(self.chunk if k <= NARROW else self.wide_chunk, column_tile(k))

    def options(self, k: int = NARROW) -> dict[str, Any]:
        """For tiles of k columns. With the narrow settings, wide rows would spill registers."""
        warps = self.num_warps * (1 if k <= NARROW else self.wide_warps)
        return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": self.fusion}


@dataclass(frozen=True)
class SweepConfig:
    """The sweep of arb-levels: `rows` rows of a panel of columns per program."""

    rows: int
    num_warps: int

    def tiles(self, n: int) -> int:
        return -(-n // self.rows)

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": False}


@dataclass(frozen=True)
class GemvConfig:
    """The GEMV: tiles of `rows` rows, split along the columns, at spans of `span`, into about `programs` programs.

    Two warps, not four: with four Triton takes the warp-group products of sm_90 and sm_100, which wait for themselves.
    """

    rows: int
    registers: int  # per thread at most; the assembler's own choice spills on sm_120
    num_warps: int = 2
    span: int = 128
    programs: int = 512
    fusion: bool = True

    def parts(self, rows: int, spans: int) -> tuple[int, int]:
        """(parts, spans of each), whatever the device is."""
        each = max(1, -(-rows // self.rows) * spans // self.programs)
        return -(-spans // each), each

    @property
    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.num_warps,
            "num_stages": 1,
            "enable_fp_fusion": self.fusion,
            "maxnreg": self.registers,
        }


@dataclass(frozen=True)
class ProductConfig:
    """A product kernel: tiles of `rows` rows of W, and of `x_rows` rows of x where it uses tensor cores."""

    rows: int
    num_warps: int
    x_rows: int = 1
    num_stages: int = 2
    registers: int | None = None  # per thread at most, where the assembler's own choice spills
    programs: int = 512
    fusion: bool = True

    def parts(self, tiles: int, cols: int) -> tuple[int, int]:
        """(parts, columns of each, a multiple of 128) to make about `programs` programs of so many tiles."""
        each = -(-cols // max(1, self.programs // tiles))
        each = -(-each // 128) * 128
        return -(-cols // each), each

    @property
    def options(self) -> dict[str, Any]:
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fusion,
            **limit,
        }


SENSITIVITY = RowConfig(rows=16, num_warps=4, max_parts=256, fusion=False)
SEARCH = RowConfig(rows=16, num_warps=4)
OUTPUT_SEARCH = RowConfig(rows=16, num_warps=8)
CHOICE = RowConfig(rows=16, num_warps=4, parts_at_once=16, fusion=False)
ROUNDING = RowConfig(rows=16, num_warps=4, max_parts=256, fusion=False)
ARB = RowConfig(rows=16, num_warps=4)
ARB_X = RowConfig(rows=16, num_warps=8, wide_warps=1)
ARB_RC = RowConfig(rows=16, num_warps=8, max_parts=64, parts_at_once=16)
LEVELS = SweepConfig(rows=32, num_warps=4)

DEQUANTIZE = ProductConfig(rows=128, num_warps=4, num_stages=1, fusion=False)
GEMV_FEW = GemvConfig(rows=128, registers=192)
GEMV_MANY = GemvConfig(rows=64, registers=192)
ADD_PARTS = RowConfig(rows=128, num_warps=4)
GEMM_FEW = ProductConfig(rows=128, x_rows=16, num_warps=4, num_stages=1, registers=224)
GEMM_MANY = ProductConfig(rows=128, x_rows=64, num_warps=4)
GEMM_FP32 = ProductConfig(rows=64, x_rows=32, num_warps=4)


def gemv_config(batch: int) -> GemvConfig:
    """The GEMV's tiles for `batch` rows of x."""
    return GEMV_FEW if batch <= 4 else GEMV_MANY


def gemm_config(batch: int, dtype: torch.dtype) -> ProductConfig:
    """The GEMM's tiles for `batch` rows of x."""
    if dtype is torch.float32:
        return GEMM_FP32
    return GEMM_FEW if batch <= GEMM_FEW.x_rows else GEMM_MANY


def column_tile(k: int) -> int:
    """Columns of the register tile for blocks of k columns: a power of two. Raises InputError for wider blocks."""
    if k > MAX_SOLVER_BLOCK:
        raise InputError(
            f"backend 'triton' solves blocks of up to {MAX_SOLVER_BLOCK} columns, got {k}: use backend='torch'"
        )
    return max(16, int(triton.next_power_of_2(k)))
