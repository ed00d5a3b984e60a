"""Times the GPU kernels on a CUDA device, after checking their numbers on fresh random inputs.

    python bench/gpu.py                          products and solver, LLaMA-7B shapes
    python bench/gpu.py --markdown gpu.md        the same, and the table as markdown

Products: every call uses the next of so many copies of the weight that together they exceed the L2 cache; CUDA events;
medians. "floor" is the packed bytes over the memory bandwidth that a copy reaches in the same run. Solver: seconds for
one matrix, whole calls, against the plain torch path on the same device. No time is printed where a number is off.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "triton"))
from helpers import random_packed
from products import assert_product
from rich.console import Console
from rich.table import Table

from arbllm_kernels import QuantConfig, gpu, quantize_weight
from arbllm_kernels.ops import packed_args
from arbllm_kernels.packed import PackedWeight

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
BATCHES = (1, 2, 4, 8, 16, 64, 256, 2048)
SALIENT = 0.08  # share of salient columns; about what the partition search picks
ROUNDS = 50
Row = tuple[str, ...]


def median_us(call: Callable[[int], object]) -> float:
    """Microseconds per call, by CUDA events; call(i) may use the i-th copy of its operands."""
    times = []
    for i in range(-5, ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(i)
        end.record()
        end.synchronize()
        if i >= 0:
            times.append(1000 * start.elapsed_time(end))
    return statistics.median(times)


def bandwidth() -> float:
    """Bytes per microsecond that a device-to-device copy reads and writes."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_us(lambda i: target.copy_(source))


def copies_of(pw: PackedWeight) -> list[PackedWeight]:
    """So many copies on the device that they exceed twice its L2 cache."""
    count = 2 * torch.cuda.get_device_properties(0).L2_cache_size // pw.nbytes + 2
    return [pw.to("cuda") for _ in range(count)]


def products(rows: int, cols: int, speed: float) -> list[Row]:
    pw = random_packed(rows, cols, salient=SALIENT, seed=torch.seed() % (1 << 31))
    args = [packed_args(copy) for copy in copies_of(pw)]
    dense = [pw.dequantize().half().cuda() for _ in range(4)]
    found = []
    for batch in BATCHES:
        x = torch.randn(batch, cols).half()
        on_device = x.cuda()
        assert_product(gpu.linear(on_device, *args[0]).cpu(), x, pw, rounds_weights=True)
        packed = median_us(lambda i, x=on_device: gpu.linear(x, *args[i % len(args)]))
        cublas = median_us(lambda i, x=on_device: F.linear(x, dense[i % len(dense)]))
        floor = pw.nbytes / speed
        cells = (f"{rows} x {cols}, batch {batch}", packed, cublas, floor, cublas / packed)
        found.append((cells[0], *(f"{value:.1f}" for value in cells[1:])))
    return found


def solver(rows: int, cols: int, method: str) -> Row:
    x = torch.randn(2 * cols, cols, device="cuda")
    W, H = torch.randn(rows, cols, device="cuda") * 0.02, x.T @ x / 64
    cfg, seconds, errors = QuantConfig(method=method), {}, {}
    for backend in ("triton", "torch"):
        quantize_weight(W[:256], H, cfg, backend=backend)  # compiles
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        packed = quantize_weight(W, H, cfg, backend=backend)
        end.record()
        end.synchronize()
        seconds[backend] = start.elapsed_time(end) / 1000
        errors[backend] = float((W.cpu() - packed.to("cpu").dequantize()).square().sum())
    if abs(errors["triton"] / errors["torch"] - 1) > 0.02:
        raise SystemExit(f"RED: {method}: squared errors {errors}; no times")
    ratio = seconds["torch"] / seconds["triton"]
    return f"{method}, {rows} x {cols}", *(f"{value:.2f}" for value in (seconds["triton"], seconds["torch"], ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    file = parser.parse_args().markdown
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py measures on a CUDA device, and torch finds none here.")
    name, speed = torch.cuda.get_device_name(), bandwidth()
    tables = {
        f"fp16 products on {name}, copy {speed / 1000:.0f} GB/s": (
            ("weight", "packed us", "cuBLAS fp16 us", "floor us", "speed-up"),
            [row for shape in SHAPES for row in products(*shape, speed)],
        ),
        f"quantize_weight on {name}": (
            ("matrix", "Triton s", "torch s", "speed-up"),
            [solver(4096, 4096, method) for method in ("billm", "arb", "arb-x", "arb-rc")],
        ),
    }
    lines = []
    for title, (head, rows) in tables.items():
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=120).print(table)
        lines += [f"## {title}", "", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), ""]
    if file is not None:
        file.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
