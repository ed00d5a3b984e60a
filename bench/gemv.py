"""Packed weights of every preset against torch F.linear in float32 and bfloat16: one command, one table.

    python bench/gemv.py [--shapes 4096x4096 576x576] [--batch 1 4] [--threads 1 2] [--json out.json]
    python bench/gemv.py --llama-bench PATH --gguf TQ2_0.gguf Q2_K.gguf    rows of llama.cpp beside it
    python bench/gemv.py --layouts --batch 1 --shapes 4096x4096            what else the format stores, not the presets
    python bench/gemv.py --stored        rows of weights without a copy (native.set_repack) beside those with one
    python bench/gemv.py --threshold     packed kernel against dequantize + BLAS, by batch
    python bench/gemv.py --overhead      microseconds per call of a 576 x 576 ARBLinear

Every result is checked against float64 first; no time is printed when the check is red. "Cold": each call uses the next
of so many separate weights that together they exceed the last-level cache. Contenders take turns within a round, so
that a busy machine slows all of them alike; so does the probe of read bandwidth. Times are medians, with the distance
from the first to the third quartile. Ratios are of medians of the same run. "At once" makes a dense W of the packed
one, in float32 or bfloat16, and multiplies by it, in every call: what prefill would be without tiles; its bandwidth
says nothing.

OMP_WAIT_POLICY is set to passive: otherwise the threads of torch's products spin for milliseconds after each and take
the processors from the contender that comes next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers import element, native_weight, random_packed

from arbllm_kernels import cpu, native, ops
from arbllm_kernels.linear import ARBLinear, linear
from arbllm_kernels.packed import PackedWeight

# Layouts as the presets make them, with the share of salient columns that gives their bits per weight.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"salient": 0.08},
    "compact": {"block_size": 2048, "salient": 0.27, "shared": True, "coded": True, "joined": True},
    "best": {"block_size": 2048, "salient": 0.87, "shared": True, "coded": True, "joined": True},
}
AT_ONCE = {"at once": torch.float32, "at once, bf16": torch.bfloat16}  # W dequantized at once, times x of that dtype
# --layouts: other blocks, means (ARB, ARB-X, BiLLM), groups, scales; 8 % of the columns are salient.
MEANS: dict[str, Any] = {"mean": True, "col_scale": False}
LAYOUTS: dict[str, dict[str, Any]] = {
    name: {"salient": 0.08, **options}
    for name, options in {
        **{f"blocks of {k}": {"block_size": k} for k in (32, 64, 128, 192, 256, 512, 2048)},
        "without CGB": {"salient_groups": 1}, "order 1": {"salient_order": 1}, "one group": {"groups": 1},
        "means": MEANS, "four groups": {"groups": 4}, "four groups, means": {"groups": 4, **MEANS},
        "fp32 scales": {"dtype": torch.float32},
    }.items()
}  # fmt: skip
BATCHES = (2, 4, 6, 8, 12, 16, 24, 32, 64, 96, 128, 256, 512)  # of --threshold
SHAPES = ("4096x4096", "11008x4096", "4096x11008", "576x576")
# How a packed weight is multiplied: dtype of x, activations, most that the product may be off, of its norm.
WAYS = {
    "exact": (torch.float32, "exact", 1e-5),
    "bf16 x": (torch.bfloat16, "exact", 0.003),  # half of a bfloat16's last bit is up to 0.4 %
    "int8": (torch.float32, "int8", 0.015),
}
STORED = ", as stored"  # after the names of layouts' rows: without the copy that they would have, which int8 needs


@dataclass
class Row:
    """One line of the table. `read` is bytes of weights per second; `share` is of what the probe read."""

    shape: str
    batch: int
    threads: int
    kernel: str
    bits: float
    ms: float
    spread: float
    read: float
    share: float
    fp32: float
    bf16: float


def last_level_cache_mb() -> int:
    """Of the first processor, in MiB as the kernel tells it; 64 where it does not."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size.removesuffix("K")) // 1024 for size in sizes if size.endswith("K")], default=64)


def copies_of(pw: PackedWeight, cache_mb: int) -> list[PackedWeight]:
    """The same weight at so many addresses that together they exceed the cache."""
    count = cache_mb * 2**20 // pw.nbytes + 2
    return [
        PackedWeight(layout=pw.layout, **{name: t.clone() for name, t in pw.tensors().items()}) for _ in range(count)
    ]


def check(pw: PackedWeight, x: torch.Tensor) -> None:
    """Exit where a product differs from float64 by more than its arithmetic explains; W may be rounded to bf16."""
    for name, (dtype, activations, most) in WAYS.items():
        own = x.to(dtype)
        exact = own.double() @ pw.dequantize().double().t()
        for copies in (True,) if activations == "int8" or not gains_by_copy(pw) else (False, True):
            with native.forced_activations(activations), native.forced_repack(copies):
                error = float((linear(own, pw).double() - exact).norm() / exact.norm())
            if not error <= most:
                raise SystemExit(f"RED: the {name} product of {pw.shape} is off by {error:.3g} of its norm; no times")


def gains_by_copy(pw: PackedWeight) -> bool:
    """Whether it has a copy, unless native.set_repack turns that off."""
    return bool(cpu.view(ops.packed_args(pw)).gains_by_copy)


def timed(
    contenders: dict[str, Callable[[int], object]], rounds: int, before: int | None = None
) -> dict[str, list[float]]:
    """Seconds of every call, sorted. Round i calls every contender with i, in an order of its own: the one that always
    came after the probe would look up to 10 % slower. If `before` is given, each is called once more before that,
    untimed, with i + before: otherwise who comes after the probe would find its code in no cache."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(-2, rounds):
        for name, call in random.Random(i).sample([*contenders.items()], len(contenders)):
            if before is not None:
                call(i + before)
            start = time.perf_counter()
            call(i)
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: sorted(t) for name, t in times.items()}


def packed_call(weights: list[PackedWeight], x: torch.Tensor, way: str, copies: bool) -> Callable[[int], object]:
    # The ways take turns with the same weights, a third of the list apart: what one has just read is not cold.
    dtype, activations, _ = WAYS[way]
    offset = [*WAYS].index(way) * (len(weights) // len(WAYS))
    x = x.to(dtype)

    def call(i: int) -> object:
        native.set_activations(activations)
        native.set_repack(copies)
        return linear(x, weights[(i + offset) % len(weights)])

    for i in range(len(weights)):
        call(i)  # plans are made at the first call
    return call


def measure(
    shape: str,
    layouts: dict[str, dict[str, Any]],
    batches: list[int],
    threads: list[int],
    rounds: int,
    cache_mb: int,
    stored: bool,
) -> list[Row]:
    """All rows of one shape. `stored`: of weights without a copy too, which have their own list of weights."""
    rows, cols = (int(part) for part in shape.split("x"))
    weights: dict[str, list[PackedWeight]] = {}
    for name, options in layouts.items():
        pw = random_packed(rows, cols, **options)
        for batch in {2, *batches}:
            check(pw, torch.randn(batch, cols))
        weights[name] = copies_of(pw, cache_mb)
        if stored and gains_by_copy(pw):
            weights[name + STORED] = copies_of(pw, cache_mb)
    count = cache_mb * 2**20 // (4 * rows * cols) + 2
    dense = [torch.randn(rows, cols) for _ in range(count)]
    half = [torch.randn(rows, cols).bfloat16() for _ in range(2 * count)]
    # Written, lest it be one page of zeros, and rotated like weights: read twice, one would be half in the cache.
    probes = [torch.ones(cache_mb * 2**18) for _ in range(3)]
    bits = {"torch fp32": 32.0, "torch bf16": 16.0}
    for name, copies in weights.items():
        bits |= {f"{name}, {way}": copies[0].bits_per_weight for way in (*WAYS, *AT_ONCE)}
    found = []
    for number in threads:
        torch.set_num_threads(number)
        for batch in batches:
            x = torch.randn(batch, cols)
            x16 = x.bfloat16()
            contenders: dict[str, Callable[[int], object]] = {
                "torch fp32": lambda i, x=x: F.linear(x, dense[i % len(dense)]),
                "torch bf16": lambda i, x=x16: F.linear(x, half[i % len(half)]),
                "probe": lambda i: probes[i % len(probes)].sum(),
            }
            for name, copies in weights.items():
                repack = not name.endswith(STORED)
                for way in ("exact", "bf16 x"):
                    contenders[f"{name}, {way}"] = packed_call(copies, x, way, repack)
                if batch >= cpu.DENSE_BATCH and repack:
                    for way, dtype in AT_ONCE.items():
                        contenders[f"{name}, {way}"] = at_once(copies, x.to(dtype))
                if repack and batch < cpu.dense_batches(cpu.view(ops.packed_args(copies[0])), True, torch.float32)[0]:
                    contenders[f"{name}, int8"] = packed_call(copies, x, "int8", repack)
            with torch.no_grad():
                # Code and x are in the cache, as in decoding; weights are not. In a long call that makes no difference.
                before = -1 if rows * cols * batch < 1 << 32 else None
                times = timed(contenders, rounds if batch < cpu.DENSE_BATCH else max(3, rounds // 5), before)
            medians = {name: statistics.median(t) for name, t in times.items()}
            bandwidth = probes[0].numel() * 4 / medians.pop("probe")
            for name, median in medians.items():
                read = bits[name] / 8 * rows * cols / median
                quarter = len(times[name]) // 4
                found.append(
                    Row(
                        shape, batch, number, name, bits[name], median * 1e3,
                        (times[name][-1 - quarter] - times[name][quarter]) * 1e3, read / 1e9, read / bandwidth,
                        medians["torch fp32"] / median, medians["torch bf16"] / median,
                    )
                )  # fmt: skip
    native.set_activations(None)
    native.set_repack(None)
    return found


def print_rows(found: list[Row]) -> None:
    print("| shape | batch | threads | kernel | bits | ms | ± | GB/s | of bandwidth | x fp32 | x bf16 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for r in found:
        print(
            f"| {r.shape} | {r.batch} | {r.threads} | {r.kernel} | {r.bits:.2f} | {r.ms:.3f} | {r.spread:.3f} | "
            f"{r.read:.1f} | {r.share:.0%} | {r.fp32:.2f} | {r.bf16:.2f} |"
        )


def llama_rows(program: Path, files: list[Path], threads: list[int]) -> list[dict[str, object]]:
    """Tokens per second of llama.cpp on files of LLaMA-7B layers."""
    found: list[dict[str, object]] = []
    for number in threads:
        for file in files:
            command = [str(program), "-m", str(file), "-t", str(number), "-p", "0", "-n", "32", "-o", "json"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]
            bits = 8 * result["model_size"] / result["model_n_params"]
            found.append({"threads": number, "kernel": result["model_type"], "bits": bits, "tokens": result["avg_ts"]})
    return found


def our_tokens(found: list[Row], layers: int) -> list[dict[str, object]]:
    """Tokens per second of `layers` LLaMA-7B layers' matrices alone: 4 of 4096², 2 of 11008x4096, 1 of 4096x11008."""
    of_layer = {"4096x4096": 4, "11008x4096": 2, "4096x11008": 1}
    lines: list[dict[str, object]] = []
    for number in sorted({r.threads for r in found}):
        for kernel in sorted({r.kernel for r in found}):
            mine = [r for r in found if r.batch == 1 and r.threads == number and r.kernel == kernel]
            ms = {r.shape: r.ms for r in mine if r.shape in of_layer}
            if set(ms) == set(of_layer):
                each = sum(of_layer[shape] * t for shape, t in ms.items())
                lines.append(
                    {"threads": number, "kernel": kernel, "bits": mine[0].bits, "tokens": 1e3 / (layers * each)}
                )
    return lines


def at_once(copies: list[PackedWeight], x: torch.Tensor) -> Callable[[int], object]:
    """What a user without packed products would do: dequantize W, in the dtype of x, and call torch."""

    def call(i: int) -> torch.Tensor:
        W = torch.ops.arb.dequantize(*ops.packed_args(copies[(i + 1) % len(copies)]))
        return F.linear(x, W.to(x.dtype))

    return call


def threshold(layouts: dict[str, dict[str, Any]], threads: list[int], rounds: int, stored: bool) -> None:
    """Times of both ways of `linear`, to choose what cpu.dense_batches answers."""
    chosen = cpu.dense_batches
    print("| shape | preset | way | threads | batch | packed ms | dequantize + mm ms |")
    print("|---|---|---|---|---|---|---|")
    for (rows, cols), (name, options) in itertools.product(((576, 576), (4096, 4096)), layouts.items()):
        pw = random_packed(rows, cols, **options)
        for batch in (2, BATCHES[-1]):
            check(pw, torch.randn(batch, cols))
        if stored and not gains_by_copy(pw):
            continue
        twins = copies_of(pw, 0)  # each keeps to the way of its first product
        ways = [way for way in WAYS if not stored or way != "int8"]
        for way, count, batch in itertools.product(ways, threads, BATCHES):
            torch.set_num_threads(count)
            dtype, activations, _ = WAYS[way]
            x = torch.randn(batch, cols, dtype=dtype)

            def call(limit: int, x: torch.Tensor = x, twins: list[PackedWeight] = twins) -> torch.Tensor:
                cpu.dense_batches = lambda *_: (limit,) * 3
                return linear(x, twins[limit == 0])

            with native.forced_activations(activations), native.forced_repack(not stored):
                times = timed({"packed": lambda i: call(cpu.NEVER), "dense": lambda i: call(0)}, rounds)
            packed, dense = (statistics.median(times[kind]) * 1e3 for kind in ("packed", "dense"))
            print(f"| {rows}x{cols} | {name} | {way} | {count} | {batch} | {packed:.2f} | {dense:.2f} |", flush=True)
    cpu.dense_batches = chosen


def overhead(rounds: int) -> None:
    """What a call costs beyond its kernel where the arithmetic is small."""
    pw = random_packed(576, 576, **PRESETS["best"])
    check(pw, torch.randn(2, 576))
    layer, dense, x = ARBLinear(pw), torch.nn.Linear(576, 576, bias=False), torch.randn(1, 576)
    tiny, one = ARBLinear(random_packed(1, 1, 1)), torch.randn(1, 1)
    args, kernel = ops.packed_args(pw), native_weight(ops.packed_args(pw))
    torch.set_num_threads(1)
    contenders: dict[str, Callable[[int], object]] = {}
    for name, (dtype, activations, _) in WAYS.items():
        own, y = x.to(dtype), torch.empty(1, 576, dtype=dtype)
        kind, way = element(dtype), getattr(native.extension.Activations, activations)

        def call(i: int, own: torch.Tensor = own, activations: str = activations) -> object:
            native.set_activations(activations)
            return layer(own)

        def alone(i: int, x: torch.Tensor = own, y: torch.Tensor = y, kind: Any = kind, way: Any = way) -> None:
            kernel.gemm(x.data_ptr(), kind, 1, y.data_ptr(), 1, way)

        contenders[f"ARBLinear 576 x 576, {name}"] = call
        contenders[f"its kernel alone, {name}"] = alone
    contenders["the op arb::linear, int8"] = lambda i: ops.LINEAR(x, *args)
    contenders["nn.Linear 576 x 576"] = lambda i: dense(x)
    contenders["ARBLinear 1 x 1"] = lambda i: tiny(one)
    with torch.no_grad():
        # A call and its kernel alone must find the caches alike, whoever came before.
        times = timed(contenders, rounds * 100, before=0)
    native.set_activations(None)
    print("| call | median us | best us |\n|---|---|---|")
    for name, t in times.items():
        print(f"| {name} | {statistics.median(t) * 1e6:.1f} | {t[0] * 1e6:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--cache-mb", type=int, default=last_level_cache_mb(), help="rotate more bytes than this (default: the cache)"
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], help="files of LLaMA-7B layers for it")
    parser.add_argument("--layers", type=int, default=2, help="layers in these files")
    parser.add_argument("--layouts", action="store_true", help="other layouts than the presets'")
    parser.add_argument(
        "--stored", action="store_true", help="rows of weights without a copy too; of --threshold: alone"
    )
    parser.add_argument("--threshold", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    layouts = LAYOUTS if options.layouts else PRESETS
    if options.threshold:
        return threshold(layouts, options.threads, min(options.rounds, 5), options.stored)
    if options.overhead:
        return overhead(options.rounds)
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {native.active_isa()}, ", end="")
    print(f"torch {torch.__version__}, load before the run {load:.1f}\n")
    found = [
        row
        for shape in options.shapes
        for row in measure(
            shape, layouts, options.batch, options.threads, options.rounds, options.cache_mb, options.stored
        )
    ]
    print_rows(found)
    peers: list[dict[str, object]] = []
    if options.llama_bench:
        peers = llama_rows(options.llama_bench, options.gguf, options.threads) + our_tokens(found, options.layers)
        print(
            f"\n{options.layers} layers of LLaMA-7B, decoding; llama.cpp includes attention, ours are products alone\n"
        )
        print("| threads | kernel | bits | tokens/s |\n|---|---|---|---|")
        for p in peers:
            print(f"| {p['threads']} | {p['kernel']} | {p['bits']:.2f} | {p['tokens']:.1f} |")
    if options.json:
        options.json.write_text(
            json.dumps({"load": load, "rows": [asdict(r) for r in found], "peers": peers}, indent=1)
        )


if __name__ == "__main__":
    main()
