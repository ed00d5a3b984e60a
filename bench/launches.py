"""Kernel launches and bytes per block of columns: the Triton solver against the search and refinement as written.

    python bench/launches.py

Counted, not measured, and on the CPU: every torch operator that would be a kernel on a GPU counts as one launch, with
the bytes of its tensors in and out; views and allocations count as nothing. "as written" is tests/direct_search.py with
the binarizers of methods/, the way the reference program works; it runs on 256 rows, and bytes, which grow with the
rows, are scaled to those asked for. The Triton solver runs on meta tensors: its own launches count as one each, with
the tensors they are given, which is what must cross the memory bus at least once per launch.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import direct_search
from rich.console import Console
from rich.table import Table

from arbllm_kernels import QuantConfig
from arbllm_kernels.methods.partition import Partition
from arbllm_kernels.methods.solve import TORCH, binarize_block
from arbllm_kernels.triton_kernels.launch import launched_by
from arbllm_kernels.triton_kernels.solve import block_loop

ROWS_AS_WRITTEN = 256
FREE = {"empty", "empty_like", "new_empty", "_local_scalar_dense", "detach", "empty_strided", "_unsafe_view"}


class Count(TorchDispatchMode):
    """Launches and bytes of the torch operators and Triton kernels within."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes, self.waits = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal"):
            self.waits += 1
        if not func.is_view and name not in FREE:
            self.add([*tree_leaves((args, kwargs)), *tree_leaves(out)])
        return out

    def add(self, values: Any) -> None:
        tensors = {t.data_ptr() or id(t): t for t in values if isinstance(t, torch.Tensor)} if values else {}
        self.launches += 1
        self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())


def as_written(cfg: QuantConfig, rows: int) -> Count:
    """One block the way the reference program works."""
    n, k = ROWS_AS_WRITTEN, cfg.block_size
    torch.manual_seed(0)
    weight, d = torch.randn(n, k) * torch.rand(k).mul(2).exp(), torch.rand(k) + 0.2
    S = torch.eye(k) if cfg.method == "arb-x" else None

    def search(w: Any, diagonal: Any, config: QuantConfig, moment: Any) -> Partition:
        return Partition(*direct_search.partition(w, diagonal, config, moment))

    with Count() as count:
        binarize_block(weight, d, cfg, S, dataclasses.replace(TORCH, partition=search))
    count.bytes = count.bytes * rows // n
    return count


def on_device(cfg: QuantConfig, rows: int, matrices: int = 1) -> Count:
    """One block of the Triton solver: the difference between two blocks and one."""
    counts = []
    for blocks in (1, 2):
        m = blocks * cfg.block_size
        work, U = torch.empty(matrices, rows, m, device="meta"), torch.empty(m, m, device="meta")
        S = torch.empty(matrices, m, m, device="meta") if cfg.method == "arb-x" else None
        count = Count()
        with count, launched_by(lambda kernel, grid, *args, count=count, **options: count.add(args)):
            block_loop(work, [U] * matrices, cfg, S)
        counts.append(count)
    once, twice = counts
    twice.launches, twice.bytes, twice.waits = (
        twice.launches - once.launches,
        twice.bytes - once.bytes,
        twice.waits - once.waits,
    )
    return twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    rows = parser.parse_args().rows
    table = Table(title=f"one block of {rows} x 128, CGB, 15 iterations: counted")
    for column in ("method", "", "launches", "waits for the device", "GB"):
        table.add_column(column)
    for method in ("arb", "arb-x", "arb-rc"):
        cfg = QuantConfig(method=method)
        for label, count in (("as written", as_written(cfg, rows)), ("Triton", on_device(cfg, rows))):
            table.add_row(method, label, str(count.launches), str(count.waits), f"{count.bytes / 1e9:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
