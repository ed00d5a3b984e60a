"""Counts for the CUDA kernels, on a machine without a GPU: what docs/gpu-cuda.md has under "Counted".

    python bench/cuda_counts.py           executes the PTX for sm_80 with ptxvm: bytes, sectors, instructions, conflicts
    python bench/cuda_counts.py --plain   the same: the plain kernel and Triton's GEMV, where the fast kernel cannot be
    python bench/cuda_counts.py --grids   what the launchers would start on some devices, and how evenly it spreads

The first two need nvcc and ptxvm (tests/cuda/ptx.py), the third a C++ compiler. Weights are ARB-RC + CGB of random
bits, 256 x 4096, block 128, 8 % salient, unless a row says otherwise; 8 warps per block of threads, 8 splits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "cuda"))
import cuda_aot
import ptx
from helpers import random_packed
from host import compile_host, launch_of
from rich.console import Console

from arbllm_kernels.ops import packed_args

ROWS, COLS, WARPS, SPLITS = 256, 4096, 8, 8
MEANS = {"mean": True, "col_scale": False}
CODED = {"shared": True, "coded": True}
# name -> rows of x, their dtype, keywords of random_packed
CASES: dict[str, tuple[int, torch.dtype, dict[str, Any]]] = {
    "ARB-RC + CGB, 8 % salient": (1, torch.float16, {}),
    **{f"the same, batch {batch}": (batch, torch.float16, {}) for batch in (2, 4, 8)},
    "the same, float32 x": (1, torch.float32, {}),
    "ARB-RC, no groups": (1, torch.float16, {"groups": 1}),
    "BiLLM-like: groups, means": (1, torch.float16, MEANS),
    "8-bit row scales, shared columns, nothing salient": (1, torch.float16, {**CODED, "salient": 0.0}),
    "8-bit row scales, shared columns, all salient": (1, torch.float16, {**CODED, "salient": 1.0}),
}
# Layouts that csrc/cuda/gemv.cuh does not take -> columns, keywords
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "odd columns": (1025, {}),
    "blocks of 48": (1056, {"block_size": 48}),
    "four groups": (1024, {"groups": 4}),
    "means and column scales": (1024, {"mean": True}),
}
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
BITS = 2.84  # per weight, of 4096 rows
# Instructions per weight for a warp's own rows, and for preparing, which a block's warps share: docs/gpu-cuda.md.
OWN, PREPARING = 4.6, 4.8


@dataclass(frozen=True)
class Gpu:
    """From data sheets and the CUDA programming guide; shared memory of an SM in KB, of a block 1 KB less."""

    processors: int
    ghz: float
    gigabytes: int  # per second
    arch: int  # whose machine code it runs
    warps: int
    kilobytes: int

    def resident(self, warps: int, shared: int) -> int:
        """Blocks of threads that an SM holds at once."""
        row = next(r for r in cuda_aot.table()["rows"] if (r["kernel"], r["arch"]) == ("gemv, groups", self.arch))
        by_registers = 65536 // (-(-row["registers"] // 8) * 8 * 32) // warps
        return min(by_registers, self.warps // warps, self.kilobytes * 1024 // (shared + 1024))

    def affordable(self) -> float:
        """Instructions per weight that it can start while memory delivers the weight."""
        return self.processors * self.ghz * 128 / (self.gigabytes * 8 / BITS)


GPUS = {
    "A100 80 GB": Gpu(108, 1.41, 2039, 80, 64, 164),
    "H100 SXM": Gpu(132, 1.98, 3350, 90, 64, 228),
    "RTX 4090": Gpu(128, 2.52, 1008, 80, 48, 100),
}


def counts() -> list[list[str]]:
    head = [
        "",
        "file, bits per weight",
        "distinct bits",
        "sectors, bits",
        "PTX instructions / weight",
        "mma / weight",
    ]
    rows = [[*head, "shared reads", "conflicts"]]
    for name, (batch, dtype, keywords) in CASES.items():
        pw = random_packed(ROWS, COLS, **{"salient": 0.08, **keywords})
        _, seen = ptx.linear(pw, torch.randn(batch, COLS).to(dtype), splits=SPLITS, warps=WARPS)
        weights = ROWS * COLS
        reads = [line for line in seen.by_line if line["space"] == "shared" and line["text"].startswith("ld")]
        bits = (pw.bits_per_weight, 8 * seen.memory["global_footprint_read_bytes"] / weights)
        values = (
            *(*bits, 8 * 32 * seen.global_load_sectors / weights),
            *(32 * sum(seen.instructions.values()) / weights, 32 * seen.instructions["mma"] / weights),
        )
        shared = (sum(line["requests"] for line in reads), sum(line["conflicts"] for line in reads))
        rows.append([name, *(f"{value:.2f}" for value in values), *map(str, shared)])
    return rows


def plain() -> list[list[str]]:
    """PTX instructions per weight."""
    from arbllm_kernels.triton_kernels.gemv import gemv
    from arbllm_kernels.triton_kernels.launch import launched_by

    ptxvm, _ = ptx.module()
    rows = [["", "batch", "CUDA, plain", "Triton GEMV"]]
    for name, (cols, keywords) in PLAIN.items():
        pw = random_packed(64, cols, **{"salient": 0.08, **keywords})
        for batch in (1, 4, 8):
            x, seen = torch.randn(batch, cols).half(), []
            with launched_by(lambda *args, **options: seen.append(ptxvm.triton_launch(*args, **options))):  # noqa: B023
                gemv(x, *packed_args(pw))
            both = (ptx.plain_linear(pw, x)[1], *seen)
            rows.append([name, str(batch), *(f"{32 * sum(c.instructions.values()) / (64 * cols):.1f}" for c in both)])
    return rows


def grids() -> list[list[str]]:
    head = ["matrix", "device", "warps per block", "blocks", "shared bytes", "warps per SM", "balance", "limit"]
    rows = [head]
    with tempfile.TemporaryDirectory() as folder:
        flags = ("-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-DARB_SHIM_RECORD")
        library = compile_host(Path(folder) / "launches.so", flags)
        for shape in SHAPES:
            for name, gpu in GPUS.items():
                memory = (gpu.kilobytes - 1) * 1024
                launch = launch_of(library, *shape, processors=gpu.processors, shared_memory=memory)
                blocks = launch.grid[0] * launch.grid[1]
                balance = blocks / (-(-blocks // gpu.processors) * gpu.processors)
                limit = min(1.0, balance * gpu.affordable() / (OWN + PREPARING / launch.warps))
                at_once = launch.warps * min(gpu.resident(launch.warps, launch.shared), -(-blocks // gpu.processors))
                numbers = (launch.warps, blocks, launch.shared, at_once)
                cells = (f"{shape[0]} x {shape[1]}", name, *map(str, numbers), f"{balance:.0%}", f"{limit:.0%}")
                rows.append(list(cells))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--plain", action="store_true")
    which.add_argument("--grids", action="store_true")
    given = parser.parse_args()
    if not given.grids and ptx.missing() is not None:
        raise SystemExit(f"bench/cuda_counts.py {ptx.missing()}; --grids does without")
    head, *rows = grids() if given.grids else plain() if given.plain else counts()
    Console(soft_wrap=True, highlight=False).print(
        *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), sep="\n"
    )


if __name__ == "__main__":
    main()
