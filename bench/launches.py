"""Kernel launches and bytes of the Triton solver, against the search and refinement as written.

    python bench/launches.py             one block of 4096 x 128, and a whole LLaMA-7B layer
    python bench/launches.py --rows N    another block

Counted, not measured, and on the CPU. "as written" is tests/direct_search.py with the binarizers of methods/, the way
the reference program works, on 256 rows; bytes grow with the rows and are scaled. Its launches are counted twice: by
the torch profiler (operators that call no other, but for views, allocations and the number a program waits for), and by
a dispatch mode, which sees the tensors and so counts the bytes in and out of each operator. The Triton solver runs on
meta tensors: its own launches count as one each, with the tensors they are given, which is what must cross the memory
bus at least once per launch. The block loop of a whole layer is counted that way: each linear alone, those of one
shape together, and all together, which is how methods.solve_all is given them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
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
from arbllm_kernels.triton_kernels.solve import block_loop, block_steps

ROWS_AS_WRITTEN = 256
# rows x columns of the linears of a layer, the longest rows first, and how many there are
LAYERS = {
    "LLaMA-7B": {(4096, 11008): 1, (4096, 4096): 4, (11008, 4096): 2},  # down; q k v o; gate up
    "SmolLM2-135M": {(576, 1536): 1, (192, 576): 2, (576, 576): 2, (1536, 576): 2},  # down; k v; q o; gate up
}
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


def on_device(cfg: QuantConfig, shapes: Sequence[tuple[int, int]]) -> Count:
    """The block loop of the Triton solver for matrices of these shapes, the longest rows first."""
    work = [torch.empty(n, m, device="meta") for n, m in shapes]
    U = [torch.empty(m, m, device="meta") for _, m in shapes]
    S = U if cfg.method == "arb-x" else None
    steps = block_steps(shapes, cfg.block_size, "meta")
    count = Count()
    with count, launched_by(lambda kernel, grid, *args, **options: count.add(args)):
        block_loop(steps, work, U, cfg, S)
    return count


def one_block(cfg: QuantConfig, *heights: int) -> Count:
    """One block of matrices of these heights: the difference between two blocks and one."""
    once, twice = (on_device(cfg, [(n, blocks * cfg.block_size) for n in heights]) for blocks in (1, 2))
    twice.launches -= once.launches
    twice.bytes -= once.bytes
    twice.waits -= once.waits
    return twice


def of_a_layer(cfg: QuantConfig, layer: dict[tuple[int, int], int]) -> dict[str, tuple[int, float]]:
    """(launches, bytes) of the block loops of a layer, by how its linears are put together."""
    every = [shape for shape, number in layer.items() for _ in range(number)]
    ways = {
        "one by one": [[shape] for shape in every],
        "one shape together": [[shape] * number for shape, number in layer.items()],
        "all together": [every],
    }
    found = {}
    for way, calls in ways.items():
        counts = [on_device(cfg, shapes) for shapes in calls]
        found[f"Triton, {way}"] = (sum(c.launches for c in counts), float(sum(c.bytes for c in counts)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    rows = parser.parse_args().rows
    block = Table(title=f"one block of {rows} x 128, CGB, 15 iterations: counted")
    for column in ("method", "", "launches", "by the profiler", "waits for the device", "GB"):
        block.add_column(column)
    tables = {name: Table("method", "", "launches", "GB", title=f"a layer of {name}: counted") for name in LAYERS}
    for method in ("arb", "arb-x", "arb-rc"):
        cfg = QuantConfig(method=method)
        written, device = as_written(cfg, rows), one_block(cfg, rows)
        for label, count, seen in (("as written", written, str(profiled(cfg))), ("Triton", device, "")):
            cells = (str(count.launches), seen, str(count.waits), f"{count.bytes / 1e9:.3f}")
            block.add_row(method, label, *cells)
        for name, layer in LAYERS.items():
            blocks = {shape: number * -(-shape[1] // cfg.block_size) for shape, number in layer.items()}
            size = sum(written.bytes / rows * shape[0] * number for shape, number in blocks.items())
            ways = {"as written": (written.launches * sum(blocks.values()), size), **of_a_layer(cfg, layer)}
            for way, (launches, moved) in ways.items():
                tables[name].add_row(method, way, str(launches), f"{moved / 1e9:.1f}")
    console = Console(width=100)
    for table in (block, *tables.values()):
        console.print(table)


if __name__ == "__main__":
    main()
