"""Bytes, sectors and bank conflicts of the Triton kernels as compiled for sm_80, counted by executing their PTX.

    python bench/triton_counts.py --ptxvm FOLDER             FOLDER holds the package ptxvm, which runs PTX on the CPU
    python bench/triton_counts.py --ptxvm FOLDER gemv gemm   some of them

A block of 64 x 128, or a weight of 128 x 512; launches of one kernel are added up. "asked" is what lanes ask for,
"sectors" the 32-byte pieces that warps ask the first-level cache for, "distinct" the sectors that are touched at all,
which is what memory must deliver or take. Bank conflicts are the extra passes over shared memory. Exact for these
inputs; no figure is a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers import random_packed
from rich.console import Console
from rich.table import Table

from arbllm_kernels import QuantConfig
from arbllm_kernels.ops import packed_args
from arbllm_kernels.triton_kernels.arb import refine_arb
from arbllm_kernels.triton_kernels.arb_rc import refine_arb_rc
from arbllm_kernels.triton_kernels.dequantize import stored_columns
from arbllm_kernels.triton_kernels.gemm import gemm
from arbllm_kernels.triton_kernels.gemv import gemv
from arbllm_kernels.triton_kernels.launch import launched_by
from arbllm_kernels.triton_kernels.levels import Sweeper
from arbllm_kernels.triton_kernels.partition import partition, threshold_fractions
from arbllm_kernels.triton_kernels.rounding import rounding_error
from arbllm_kernels.triton_kernels.stack import Stack

N, K = 64, 128  # a block of the solver
ROWS, COLS = 128, 512  # a packed weight
COLUMNS = ("what", "kernel", "launches", "asked, KB", "sectors, KB", "distinct, KB", "bank conflicts")


def workloads() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    stack, weight, d = Stack.of([N], "cpu"), torch.randn(N, K) * torch.rand(K).add(0.2), torch.rand(1, K).add(0.2)
    zone = torch.where(torch.rand(K) < 0.1, 0, 2).to(torch.uint8) + torch.randint(0, 2, (N, K)).to(torch.uint8)
    x = torch.randn(3 * K, K)
    S, cfg = (x.T @ x)[None] / K, QuantConfig(max_salient=10, thresholds=9)
    fractions = threshold_fractions(cfg, weight.device)
    paper = packed_args(random_packed(ROWS, COLS, salient=0.08))
    preset = packed_args(random_packed(ROWS, COLS, COLS, shared=True, coded=True, ordered=True, salient=0.5))
    half = torch.randn(64, COLS).half()

    def rounding() -> None:
        scales = refine_arb_rc(weight, stack, zone, 4, 2, 2, 1).rounded(torch.float16)
        rounding_error(weight, stack, d, zone, scales, 2)

    panel = torch.randn(16, N)
    levels = (panel, None, torch.randn(16, 16), torch.rand(6, N), panel[:, 0].abs(), panel[:, 0] > 0, torch.float16)
    return {
        "levels": lambda: Sweeper().sweep(*levels),
        "arb": lambda: refine_arb(weight, stack, zone, 4, 2, 2, 2),
        "arb-x": lambda: refine_arb(weight, stack, zone, 4, 2, 2, 2, S),
        "arb-rc": rounding,
        "search": lambda: partition(weight, stack, d, cfg, fractions),
        "search by output": lambda: partition(weight, stack, d, cfg, fractions, S),
        "gemv": lambda: gemv(half[:1], *paper),
        "gemv, batch 8": lambda: gemv(half[:8], *paper),
        "gemv, preset": lambda: gemv(half[:1], *preset),
        "gemm": lambda: gemm(half, *paper),
        "gemm, preset": lambda: gemm(half, *preset),
        "dequantize": lambda: stored_columns(*paper, first=0, last=paper[10][0]),
    }


def counted(ptxvm: Any, start: Callable[[], object]) -> dict[str, list[int]]:
    """By kernel: launches, bytes asked for, in sectors, distinct, and bank conflicts."""
    found: dict[str, list[int]] = {}

    def run(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        options.pop("maxnreg", None)  # a limit for the assembler, which is not part of this
        result = ptxvm.triton_launch(kernel, grid, *args, **options)
        memory = result.memory
        figures = (
            1,
            result.global_bytes_read + result.global_bytes_written,
            32 * (result.global_load_sectors + result.global_store_sectors),
            memory["global_footprint_read_bytes"] + memory["global_footprint_written_bytes"],
            result.shared_bank_conflicts,
        )
        sums = found.setdefault(kernel.__name__, [0] * len(figures))
        for i, value in enumerate(figures):
            sums[i] += value

    with launched_by(run):
        start()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptxvm", type=Path, required=True, help="the folder that holds the package ptxvm")
    parser.add_argument("names", nargs="*", help="workloads; default: all")
    args = parser.parse_args()
    sys.path.append(str(args.ptxvm))
    import ptxvm

    table = Table(*COLUMNS, title="sm_80, executed on the CPU: counted")
    for name, start in workloads().items():
        if not args.names or name in args.names:
            for kernel, (launches, *sizes, conflicts) in counted(ptxvm, start).items():
                cells = (f"{size / 1000:.1f}" for size in sizes)
                table.add_row(name, kernel, str(launches), *cells, str(conflicts))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
