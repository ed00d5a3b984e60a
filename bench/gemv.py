"""GEMV benchmark: packed weights against torch F.linear in float32 and bfloat16, weights cold.

    python bench/gemv.py [--rows 4096 --cols 4096] [--threads 1 2]   the table
    python bench/gemv.py --threshold                                 packed kernel against dequantize + BLAS, by batch
    python bench/gemv.py --overhead                                  microseconds per call of a 576 x 576 ARBLinear

Every result is checked against float64 first; no time is printed when the check is red. "Cold": each call uses the next
of so many copies of the weight that together they exceed the last-level cache. Times are medians; contenders take
turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers import random_packed

from arbllm_kernels import native, ops
from arbllm_kernels.linear import ARBLinear, linear
from arbllm_kernels.packed import PackedWeight

SALIENT = 0.08  # share of salient columns; about what the partition search picks
CONSOLE = Console(width=120)


def copies_of(pw: PackedWeight, count: int) -> list[PackedWeight]:
    """The same weight at `count` different addresses."""
    parts = pw.tensors()
    return [PackedWeight(layout=pw.layout, **{name: t.clone() for name, t in parts.items()}) for _ in range(count)]


def check(pw: PackedWeight, x: torch.Tensor) -> None:
    """Exit where the product differs from float64 by more than the rounding of a float32 sum."""
    dense = pw.dequantize().double()
    error = (linear(x, pw).double() - x.double() @ dense.t()).abs()
    bound = 3 * pw.layout.cols * 2.0**-24 * (x.double().abs() @ dense.abs().t()) + 1e-3
    if not bool((error <= bound).all()):
        raise SystemExit(f"RED: the packed product is off by {float(error.max()):.3g}; no times")


def median_times(contenders: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Seconds per call; round i calls every contender with i."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(-2, rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call(i)
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def table(rows: int, cols: int, threads: list[int], cache_mb: int, rounds: int) -> None:
    pw = random_packed(rows, cols, salient=SALIENT)
    x = torch.randn(1, cols)
    check(pw, x)
    target = cache_mb * 2**20

    def enough(nbytes: int) -> int:
        return target // nbytes + 2

    packed = copies_of(pw, enough(pw.nbytes))
    for each in packed:
        assert each.order is not None and each.salient_counts is not None  # derived once, as ARBLinear does
    dense = [pw.dequantize() for _ in range(enough(4 * rows * cols))]
    half = [dense[0].bfloat16() for _ in range(enough(2 * rows * cols))]
    x16 = x.bfloat16()
    out = Table(title=f"GEMV {rows} x {cols}, {pw.bits_per_weight:.2f} bits per weight, {native.active_isa()}, cold")
    for column in ("threads", "kernel", "ms", "GB/s read", "Gweights/s", "x torch fp32", "x torch bf16"):
        out.add_column(column, justify="left" if column == "kernel" else "right")
    for count in threads:
        torch.set_num_threads(count)
        seconds = median_times(
            {
                "packed": lambda i: linear(x, packed[i % len(packed)]),
                "torch fp32": lambda i: F.linear(x, dense[i % len(dense)]),
                "torch bf16": lambda i: F.linear(x16, half[i % len(half)]),
            },
            rounds,
        )
        sizes = {"packed": pw.nbytes, "torch fp32": 4 * rows * cols, "torch bf16": 2 * rows * cols}
        for name, t in seconds.items():
            ratios = [f"{seconds[other] / t:.2f}" for other in ("torch fp32", "torch bf16")]
            out.add_row(
                str(count),
                name,
                f"{t * 1e3:.3f}",
                f"{sizes[name] / t / 1e9:.1f}",
                f"{rows * cols / t / 1e9:.2f}",
                *ratios,
            )
    CONSOLE.print(out)


def threshold(rows: int, cols: int, threads: list[int], rounds: int) -> None:
    """Times of both ways of `arb::linear`, to choose ops.DENSE_BATCH."""
    pw = random_packed(rows, cols, salient=SALIENT)
    args = ops.packed_args(pw)
    out = Table(title=f"{rows} x {cols}: packed kernel and dequantize + BLAS, ms")
    for column in ("threads", "batch", "packed", "dequantize + mm"):
        out.add_column(column, justify="right")
    chosen = ops.DENSE_BATCH
    for count in threads:
        torch.set_num_threads(count)
        for batch in (1, 4, 8, 12, 16, 24, 32):
            x = torch.randn(batch, cols)
            check(pw, x)

            def call(dense_batch: int, x: torch.Tensor = x) -> torch.Tensor:
                ops.DENSE_BATCH = dense_batch
                return torch.ops.arb.linear(x, *args)

            seconds = median_times({"packed": lambda i: call(1 << 30), "dense": lambda i: call(0)}, rounds)
            out.add_row(str(count), str(batch), f"{seconds['packed'] * 1e3:.2f}", f"{seconds['dense'] * 1e3:.2f}")
    ops.DENSE_BATCH = chosen
    CONSOLE.print(out)


def overhead(rounds: int) -> None:
    """Cost of a call where the arithmetic is small, and what each way of registering the op adds to it."""
    pw = random_packed(576, 576, salient=SALIENT)
    layer, dense, x = ARBLinear(pw), torch.nn.Linear(576, 576, bias=False), torch.randn(1, 576)
    check(pw, x)
    args, tiny = ops.packed_args(pw), random_packed(1, 1, 1)
    tiny_args, one = ops.packed_args(tiny), torch.randn(1, 1)
    custom = torch.library.custom_op("arb_bench::linear", ops._linear_cpu, mutates_args=(), schema=_schema())
    custom.register_autograd(ops._linear_backward, setup_context=ops._save_packed)
    torch.set_num_threads(1)
    with torch.no_grad():
        seconds = median_times(
            {
                "ARBLinear 576 x 576": lambda i: layer(x),
                "arb::linear 576 x 576": lambda i: ops.LINEAR(x, *args),
                "nn.Linear 576 x 576": lambda i: dense(x),
                "arb::linear 1 x 1 (Library.define)": lambda i: ops.LINEAR(one, *tiny_args),
                "the same through custom_op": lambda i: custom(one, *tiny_args),
                "the Python function itself": lambda i: ops._linear_cpu(one, *tiny_args),
            },
            rounds * 100,
        )
    for name, t in seconds.items():
        CONSOLE.print(f"{name:40} {t * 1e6:8.1f} us per call")


def _schema() -> str:
    return f"(Tensor x, {ops.PACKED_SCHEMA}) -> Tensor"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cache-mb", type=int, default=64, help="rotate more bytes than this")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threshold", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.threshold:
        threshold(options.rows, options.cols, options.threads, options.rounds)
    elif options.overhead:
        overhead(options.rounds)
    else:
        table(options.rows, options.cols, options.threads, options.cache_mb, options.rounds)


if __name__ == "__main__":
    main()
