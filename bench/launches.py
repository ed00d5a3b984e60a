"""Kernel launches and bytes of the Triton solver, against the search and refinement as written.

    python bench/launches.py             one block of 4096 x 128, and a whole LLaMA-7B layer
    python bench/launches.py --rows N    another block

Counted, not measured, and on the CPU. "as written" is tests/direct_search.py with the binarizers of methods/, the way
the reference program works, on 256 rows; bytes grow with the rows and are scaled. Its launches are counted twice: by
the torch profiler (operators that call no other, but for views, allocations and the number a program waits for), and by
a dispatch mode, which sees the tensors and so counts the bytes in and out of each operator. The Triton solver runs on
meta tensors: its own launches count as one each, with the tensors they are given, which is what must cross the memory
bus at least once per launch. A layer is what methods.solve_all is given: linears of one shape together.
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
LAYER = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}  # LLaMA-7B: q k v o, gate up, down
VIEWS = {"as_strided", "view", "_reshape_alias", "alias", "expand", "permute", "transpose", "t", "slice", "select"}
FREE = {"empty", "empty_like", "new_empty", "_local_scalar_dense", "detach", "empty_strided", "_unsafe_view"}
NO_LAUNCH = VIEWS | FREE | {"result_type", "unbind", "resolve_conj", "resolve_neg", "lift_fresh", "is_nonzero"}


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
    with Count() as count:
        _one_block_as_written(cfg)
    count.bytes = count.bytes * rows // ROWS_AS_WRITTEN
    return count


def profiled(cfg: QuantConfig) -> int:
    """Launches of the same by the torch profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _one_block_as_written(cfg)
    leaves = [e for e in profile.events() if e.name.startswith("aten::") and not e.cpu_children]
    return sum(e.name.removeprefix("aten::") not in NO_LAUNCH for e in leaves)


def _one_block_as_written(cfg: QuantConfig) -> None:
    n, k = ROWS_AS_WRITTEN, cfg.block_size
    torch.manual_seed(0)
    weight, d = torch.randn(n, k) * torch.rand(k).mul(2).exp(), torch.rand(k) + 0.2
    S = torch.eye(k) if cfg.method == "arb-x" else None

    def search(w: Any, diagonal: Any, config: QuantConfig, moment: Any) -> Partition:
        return Partition(*direct_search.partition(w, diagonal, config, moment))

    binarize_block(weight, d, cfg, S, dataclasses.replace(TORCH, partition=search))


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


def of_a_layer(cfg: QuantConfig, together: bool) -> tuple[int, float]:
    """(launches, bytes) of the block loops of a LLaMA-7B layer, linears of one shape together or each alone."""
    launches, size = 0, 0.0
    for (rows, cols), number in LAYER.items():
        blocks = -(-cols // cfg.block_size)
        count = on_device(cfg, rows, number if together else 1)
        times = blocks * (1 if together else number)
        launches, size = launches + count.launches * times, size + count.bytes * times
    return launches, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    rows = parser.parse_args().rows
    block = Table(title=f"one block of {rows} x 128, CGB, 15 iterations: counted")
    for column in ("method", "", "launches", "by the profiler", "waits for the device", "GB"):
        block.add_column(column)
    layer = Table(title="a LLaMA-7B layer: counted")
    for column in ("method", "", "launches", "GB"):
        layer.add_column(column)
    for method in ("arb", "arb-x", "arb-rc"):
        cfg = QuantConfig(method=method)
        written, device = as_written(cfg, rows), on_device(cfg, rows)
        for label, count, seen in (("as written", written, str(profiled(cfg))), ("Triton", device, "")):
            cells = (str(count.launches), seen, str(count.waits), f"{count.bytes / 1e9:.3f}")
            block.add_row(method, label, *cells)
        blocks = {shape: number * -(-shape[1] // cfg.block_size) for shape, number in LAYER.items()}
        size = sum(written.bytes / rows * shape[0] * number for shape, number in blocks.items())
        layer.add_row(method, "as written", str(written.launches * sum(blocks.values())), f"{size / 1e9:.0f}")
        for label, together in (("Triton, one by one", False), ("Triton, one shape together", True)):
            launches, size = of_a_layer(cfg, together)
            layer.add_row(method, label, str(launches), f"{size / 1e9:.1f}")
    console = Console(width=100)
    console.print(block)
    console.print(layer)


if __name__ == "__main__":
    main()
