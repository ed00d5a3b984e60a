"""Counts for the CUDA kernels, on a machine without a GPU: what docs/gpu-cuda.md has under "Counted".

    python bench/cuda_counts.py --ptxvm FOLDER   executes the PTX for sm_80 with the ptxvm in that folder: bytes,
                                                 sectors, instructions, bank conflicts
    python bench/cuda_counts.py --plain          the same: the plain kernel and Triton's GEMV, for layouts that the
                                                 tensor-core kernels do not take
    python bench/cuda_counts.py --grids          what the launchers would start on some devices, how evenly it spreads,
                                                 and the share of the bandwidth that instructions allow

The first two need nvcc and ptxvm (tests/cuda/ptx.py), the third a C++ compiler. Weights are ARB-RC + CGB of random
bits, 256 x 4096, block 128, 8 % salient, unless a row says otherwise; 8 warps per block of threads, 8 splits.
"""

from __future__ import annotations

import argparse
import os
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
from host import Launch, compile_host, launch_of
from rich.console import Console

from arbllm_kernels.ops import packed_args

ROWS, COLS, WARPS, SPLITS = 256, 4096, 8, 8
MEANS = {"mean": True, "col_scale": False}
CODED = {"shared": True, "coded": True}
# name -> kernel, rows of x, their dtype, keywords of random_packed
LEVELS = {**CODED, "block_size": 2048, "ordered": True}  # as presets best and compact
CASES: dict[str, tuple[str, int, torch.dtype, dict[str, Any]]] = {
    "ARB-RC + CGB, 8 % salient": ("binary", 1, torch.float16, {}),
    "the same, float32 x": ("binary", 1, torch.float32, {}),
    "ARB-RC, no groups": ("binary", 1, torch.float16, {"groups": 1}),
    "BiLLM-like: groups, means": ("binary", 1, torch.float16, MEANS),
    "preset compact: format 2, blocks of 2048, 27 % salient": ("binary", 1, torch.float16, {**LEVELS, "salient": 0.27}),
    "preset best: the same, 87 % salient": ("binary", 1, torch.float16, {**LEVELS, "salient": 0.87}),
    "bf16 kernel: ARB-RC + CGB": ("bf16", 1, torch.float16, {}),
    **{f"the same, batch {batch}": ("bf16", batch, torch.float16, {}) for batch in (2, 4, 8)},
}
# Layouts that the tensor-core kernels do not take -> columns, keywords
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "odd columns": (1025, {}),
    "blocks of 48": (1056, {"block_size": 48}),
    "four groups": (1024, {"groups": 4}),
    "means and column scales": (1024, {"mean": True}),
}
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
BITS = 2.84  # per weight, of 4096 rows
# Instructions of the binary kernel, as in csrc/cuda/launchers.cu: of a warp for a unit, of a block of threads for
# preparing a unit, and of a warp for everything around. Compiled for sm_80, added up along the usual path.
OWN, PREPARING, AROUND = 330, 790, 270
UNIT = 128  # columns


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
        row = next(r for r in cuda_aot.table()["rows"] if (r["kernel"], r["arch"]) == ("binary", self.arch))
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
    for name, (kernel, batch, dtype, keywords) in CASES.items():
        pw = random_packed(ROWS, COLS, **{"salient": 0.08, **keywords})
        _, seen = ptx.linear(pw, torch.randn(batch, COLS).to(dtype), splits=SPLITS, warps=WARPS, kernel=kernel)
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


def busiest(launch: Launch, shape: tuple[int, int], processors: int) -> tuple[float, float]:
    """Units of the average processor over the busiest one's; instructions of that one over the average's weights.

    Blocks of threads are dealt out in turn.
    """
    tiles, splits, _ = launch.grid
    units = -(-shape[1] // UNIT)
    dealt = [units // splits + (split < units % splits) for split in range(splits) for _ in range(tiles)]
    shares = [dealt[i::processors] for i in range(processors)]
    most = max(sum(share) for share in shares)
    cost = launch.warps * OWN + PREPARING
    instructions = max(sum(share) * cost + len(share) * launch.warps * AROUND for share in shares)
    weights = shape[0] / 32 * units * UNIT / processors  # of a lane
    return sum(dealt) / processors / most, instructions / weights


def grids() -> list[list[str]]:
    head = ["matrix", "device", "warps per block", "tiles x splits", "shared bytes", "warps per SM", "balance"]
    rows = [[*head, "instructions per weight", "affordable", "limit"]]
    with tempfile.TemporaryDirectory() as folder:
        flags = ("-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-DARB_SHIM_RECORD")
        library = compile_host(Path(folder) / "launches.so", flags)
        for shape in SHAPES:
            for name, gpu in GPUS.items():
                memory = (gpu.kilobytes - 1) * 1024
                launch = launch_of(library, *shape, processors=gpu.processors, shared_memory=memory)
                tiles, splits, _ = launch.grid
                balance, needed = busiest(launch, shape, gpu.processors)
                turns = -(-tiles * splits // gpu.processors)
                at_once = launch.warps * min(gpu.resident(launch.warps, launch.shared), turns)
                numbers = (launch.warps, f"{tiles} x {splits}", launch.shared, at_once)
                limit = min(1.0, gpu.affordable() / needed)
                shares = (f"{balance:.0%}", f"{needed:.2f}", f"{gpu.affordable():.2f}", f"{limit:.0%}")
                rows.append([f"{shape[0]} x {shape[1]}", name, *map(str, numbers), *shares])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--plain", action="store_true")
    which.add_argument("--grids", action="store_true")
    parser.add_argument("--ptxvm", type=Path, metavar="FOLDER", help="the folder that holds ptxvm; or $ARBLLM_PTXVM")
    given = parser.parse_args()
    if given.ptxvm is not None:
        os.environ["ARBLLM_PTXVM"] = str(given.ptxvm)
    if not given.grids and ptx.missing() is not None:
        raise SystemExit(f"bench/cuda_counts.py {ptx.missing()}; --grids does without")
    head, *rows = grids() if given.grids else plain() if given.plain else counts()
    Console(soft_wrap=True, highlight=False).print(
        *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), sep="\n"
    )


if __name__ == "__main__":
    main()
