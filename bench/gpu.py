"""Times the GPU kernels on a CUDA device, after checking their numbers on fresh random inputs.

    python bench/gpu.py                          products and solver, LLaMA-7B shapes
    python bench/gpu.py --markdown gpu.md        the same, and the tables as markdown, each as soon as it is made
    python bench/gpu.py --only solver            one part: products, solver or gemlite
    python bench/gpu.py --gguf FILE ...          and llama.cpp's llama-bench on such files, of PATH or --llama-bench

Products: calls over so many copies of the weight that together they exceed twice the L2 cache, captured in a CUDA
graph; "us" is the replay's time per call, by CUDA events, the median of 50. "eager us" is the same calls from Python,
which for small matrices is Python's time. GB/s counts each kernel's own bytes of weights; "of copy" is their
share of what a device-to-device copy reads and writes in the same run. GemLite's 2-bit product has a table of its own
where it is installed. Solver: seconds for one matrix, whole calls, against the plain torch path on the same device. No
time is printed where a number is off.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import llama_bench
from helpers import random_packed
from rich.console import Console
from rich.table import Table

from arbllm_kernels import QuantConfig, cuda, gpu, quantize_weight
from arbllm_kernels.config import METHODS
from arbllm_kernels.ops import packed_args

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 2048)
# Layouts as the presets make them, with the share of salient columns that gives their bits per weight.
LAYOUTS = {
    "paper": {"salient": 0.08},
    "best": {"block_size": 2048, "salient": 0.87, "shared": True, "coded": True},
}
ROUNDS = 50
CALLS = 40  # at least so many in a graph, so that starting it does not count
GROUP = 128  # of GemLite's scales
PARTS = ("products", "solver", "gemlite")
Row = tuple[str, ...]
PRODUCT_HEAD = ("weight", "kernel", "us", "GB/s", "of copy", "eager us", "cuBLAS us / us")
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to multiply: bytes of the weight, and a function of x for each copy of it."""

    name: str
    nbytes: int
    products: Sequence[Product]


def median_us(run: Callable[[], object]) -> float:
    """Microseconds, by CUDA events."""
    times = []
    for i in range(-5, ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 0:
            times.append(1000 * start.elapsed_time(end))
    return statistics.median(times)


def call_us(products: Sequence[Product], x: Tensor) -> tuple[float, float]:
    """Microseconds per call, replayed as a CUDA graph and called from Python."""
    calls = list(products) * -(-CALLS // len(products))

    def run() -> None:
        for product in calls:
            product(x)

    run()  # compiles and tunes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median_us(graph.replay) / len(calls), median_us(run) / len(calls)


def bandwidth() -> float:
    """Bytes per microsecond that a device-to-device copy reads and writes."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_us(lambda: target.copy_(source))


def copies(nbytes: int) -> int:
    """So many copies exceed twice the device's L2 cache."""
    return 2 * torch.cuda.get_device_properties(0).L2_cache_size // nbytes + 2


def measured(shape: str, contenders: Sequence[Contender], x: Tensor, speed: float) -> list[Row]:
    """A row for each; the first is what the last column divides."""
    rows, first = [], 0.0
    for one in contenders:
        us, eager = call_us(one.products, x)
        first = first or us
        rate = one.nbytes / us
        cells = (f"{us:.1f}", f"{rate / 1000:.0f}", f"{rate / speed:.0%}", f"{eager:.1f}", f"{first / us:.2f}")
        rows.append((f"{shape}, batch {len(x)}", one.name, *cells))
    return rows


def products(rows: int, cols: int, speed: float, batches: Sequence[int]) -> list[Row]:
    weights = {name: random_packed(rows, cols, seed=torch.seed() % (1 << 31), **LAYOUTS[name]) for name in LAYOUTS}
    args = {n: [packed_args(pw.to("cuda")) for _ in range(copies(pw.nbytes))] for n, pw in weights.items()}
    exact = {name: pw.dequantize().cuda().double() for name, pw in weights.items()}
    half = exact["paper"].half()
    dense = [half.clone() for _ in range(copies(half.nbytes))]
    found = []
    for batch in batches:
        x = torch.randn(batch, cols, device="cuda").half()
        contenders = [Contender("cuBLAS fp16", half.nbytes, [lambda x, w=w: F.linear(x, w) for w in dense])]
        for layout, pw in weights.items():
            for name, product in packed_products(batch, args[layout][0], every=layout == "paper").items():
                assert_close(product(x, *args[layout][0]), x, exact[layout])
                calls = [lambda x, a=a, product=product: product(x, *a) for a in args[layout]]
                contenders.append(Contender(f"{layout}: {name}", pw.nbytes, calls))
        found += measured(f"{rows} x {cols}", contenders, x, speed)
    return found


def assert_close(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """x in half precision, times a weight that was rounded to it or not: the unit of rounding times sum |w||x|."""
    wide = x.double()
    bound = 2.0**-10 * (wide.abs() @ weight.abs().T)
    if not bool(((y.double() - wide @ weight.T).abs() <= bound).all()):
        raise SystemExit(f"RED: a product of {len(x)} rows is off; no times")


def packed_products(batch: int, args: tuple, every: bool) -> dict[str, Callable[..., Tensor]]:
    """What arb::linear uses for so many rows of x, by name; and, if asked, what else could serve them."""
    found: dict[str, Callable[..., Tensor]] = {gpu.product_kernel(batch, *args): gpu.linear}
    if every and gpu.has_triton():
        from arbllm_kernels.triton_kernels.gemm import dense_gemm, gemm
        from arbllm_kernels.triton_kernels.gemv import gemv

        others = {"Triton GEMV": gemv} if batch <= gpu.GEMV_BATCH else {"Triton GEMM": gemm, "dense tiles": dense_gemm}
        found |= {name: kernel for name, kernel in others.items() if name not in found}
    return found


def gemlite(rows: int, cols: int, speed: float) -> list[Row]:
    """GemLite's 2-bit product of weights of the same shape, beside cuBLAS."""
    from gemlite.helper import A16Wn

    codes = torch.randint(0, 4, (rows, cols), dtype=torch.uint8, device="cuda")
    scale, zero = (torch.rand(rows, cols // GROUP, device="cuda").add(0.5).half() for _ in range(2))
    nbytes = rows * cols // 4 + scale.nbytes + zero.nbytes
    layers = [A16Wn(device="cuda:0").from_weights(codes, scale, zero, 2, GROUP) for _ in range(copies(nbytes))]
    wide = [t.float().repeat_interleave(GROUP, 1) for t in (scale, zero)]
    half = ((codes.float() - wide[1]) * wide[0]).half()
    dense = [half.clone() for _ in range(copies(half.nbytes))]
    found = []
    for batch in BATCHES:
        x = torch.randn(batch, cols, device="cuda").half()
        exact = x.double() @ half.double().T
        error = float((layers[0](x).double() - exact).norm() / exact.norm())
        if not error < 0.01:
            raise ValueError(f"its product is off by {error:.3g} of the norm")
        contenders = [
            Contender("cuBLAS fp16", half.nbytes, [lambda x, w=w: F.linear(x, w) for w in dense]),
            Contender(f"GemLite, 2 bits, groups of {GROUP}", nbytes, layers),
        ]
        found += measured(f"{rows} x {cols}", contenders, x, speed)
    return found


def solver(rows: int, cols: int, method: str) -> Row:
    x = torch.randn(2 * cols, cols, device="cuda")
    W, H = torch.randn(rows, cols, device="cuda") * 0.02, x.T @ x / 64
    cfg = QuantConfig.preset("best") if method == "arb-levels" else QuantConfig(method=method)
    seconds, errors = {}, {}
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


def show(title: str, head: Row, rows: Sequence[Row], file: Path | None) -> None:
    """Print the table, and append it to the file as markdown."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    if file is not None:
        lines = [f"## {title}", "", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), ""]
        with file.open("a") as out:
            out.write("\n".join(lines) + "\n")


def gemlite_rows(speed: float) -> list[Row]:
    """Another project's kernels, of whichever version is installed: what goes wrong there is said, not raised."""
    try:
        return [row for shape in SHAPES for row in gemlite(*shape, speed)]
    except ImportError:
        print("GemLite is not installed, so there is no row of it; pip install gemlite adds them.")
    except Exception as error:
        print(f"GemLite is installed and has no rows: {type(error).__name__}: {error}")
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], help="files for llama.cpp, e.g. of 2-bit types")
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench"), help="its program, built with CUDA")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="parts to measure")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="rows of x")
    given = parser.parse_args()
    file = given.markdown
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py measures on a CUDA device, and torch finds none here.")
    if cuda.unavailable() is not None:
        print(f"No CUDA rows: {cuda.unavailable()}.")
    if file is not None:
        file.unlink(missing_ok=True)
    device, speed = torch.cuda.get_device_name(), bandwidth()
    if "products" in given.only:
        for shape in SHAPES:
            title = f"fp16 products on {device}, copy {speed / 1000:.0f} GB/s"
            show(title, PRODUCT_HEAD, products(*shape, speed, given.batches), file)
    if "solver" in given.only:
        rows = [solver(4096, 4096, method) for method in METHODS]
        show(f"quantize_weight on {device}", ("matrix", "Triton s", "torch s", "speed-up"), rows, file)
    if "gemlite" in given.only and (rows := gemlite_rows(speed)):
        show(f"GemLite on {device}", PRODUCT_HEAD, rows, file)
    if given.gguf and given.llama_bench:
        llama = llama_bench.rows(given.llama_bench, given.gguf, speed)
        show(f"llama.cpp on {device}", llama_bench.HEAD, llama, file)
    else:
        print("No rows of llama.cpp: they need --gguf, and llama-bench on PATH or --llama-bench.")


if __name__ == "__main__":
    main()
