"""A whole model through `quantize_checkpoint`, calibration included, and where its seconds went.

    python bench/whole.py SmolLM2-135M-Instruct.Q4_1.gguf --calib brown.txt --presets paper best

Columns: "prepare" opens and checks the checkpoint and tokenizes; "forward" runs the layers, twice per sample, and reads
their weights; "Hessians" sums x x^T; "Cholesky" factorizes; "search" and "refine" are the two inner loops of the solver
(partition and binarizers; for arb-levels fit and sweep), "products" the error propagation by matrix products where it
can be told apart, "solver rest" what else it does; "other" judges, stores and assembles the file. "GFLOP/s" is what
torch's float32 product reached just before and just after: a shared machine is not always as fast. The last lines
extrapolate to LLaMA-7B by counting operations; nothing of that size was run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from solver import LLAMA_7B, Shares

import arbllm_kernels as arb
from arbllm_kernels.config import PRESETS
from arbllm_kernels.pipeline import Summary, quantize_checkpoint

LLAMA_7B_SHAPE = (32, 4096, 11008)  # layers, hidden width, width between the two halves of the MLP


def parts(summary: Summary, total: float, inner: dict[str, float]) -> dict[str, float]:
    s = summary.seconds
    found = {
        "prepare": s.prepare,
        "forward": s.forward,
        "Hessians": s.hessian,
        "Cholesky": s.factor,
        "search": inner["search"],
        "refine": inner["refine"],
        "products": inner["products"],
        "solver rest": s.solve - sum(inner.values()),
    }
    return {**found, "other": total - sum(found.values())}


def products() -> float:
    """GFLOP/s of torch's product of 512 rows and a matrix of 2,048 x 2,048: a median of 15."""
    x, W, seconds = torch.randn(512, 2048), torch.randn(2048, 2048), []
    for _ in range(15):
        start = time.perf_counter()
        torch.mm(x, W)
        seconds.append(time.perf_counter() - start)
    return 2 * x.shape[0] * W.numel() / statistics.median(seconds) / 1e9


def per_width(shape: tuple[int, ...], power: int) -> int:
    """Sum over the different inputs of the linears: three of the hidden width (q/k/v, o, gate/up), one of the other."""
    layers, hidden, inner = shape
    return layers * (3 * hidden**power + inner**power)


def extrapolation(summary: Summary, found: dict[str, float], samples: int, seqlen: int) -> str:
    """Minutes for LLaMA-7B on the same machine: each part by its operations, with as many calibration tokens."""
    weights = sum(r.rows * r.cols for r in summary.linears)
    widths = sorted({r.cols for r in summary.linears})
    if len(widths) != 2:
        return "no extrapolation: the model is not made like LLaMA"
    shape = (sum(r.cols == widths[1] for r in summary.linears), *widths)
    squares, cubes = (per_width(LLAMA_7B_SHAPE, power) / per_width(shape, power) for power in (2, 3))
    solver = sum(found[name] for name in ("search", "refine", "products", "solver rest"))
    minutes = {
        "forward": found["forward"] * LLAMA_7B / weights,
        "Hessians": found["Hessians"] * squares,
        "Cholesky": found["Cholesky"] * cubes,
        "solver": solver * LLAMA_7B / weights,
    }
    listed = ", ".join(f"{name} {value / 60:.0f}" for name, value in minutes.items())
    return f"{sum(minutes.values()) / 60:.0f} min ({listed}) with {samples} x {seqlen} tokens"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--presets", nargs="+", default=["paper", "best"], choices=list(PRESETS))
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = p.parse_args()
    torch.set_num_threads(args.threads)

    rows, notes, totals = [], [], {}
    for preset in args.presets:
        cfg, speed = arb.QuantConfig.preset(preset), products()
        with tempfile.TemporaryDirectory() as folder, Shares("auto") as shares:
            start = time.perf_counter()
            out = Path(folder) / "model.arb"
            summary = quantize_checkpoint(
                args.model, out, cfg, args.calib, samples=args.samples, seqlen=args.seqlen, progress=False
            )
            total = totals[preset] = time.perf_counter() - start
        found = parts(summary, total, shares.seconds)
        names = list(found)
        cells = " | ".join(f"{value:.1f} ({value / total:.0%})" for value in found.values())
        rows.append(f"| `{preset}` | {total:.0f} | {cells} | {speed:.0f}, {products():.0f} |")
        notes.append(f"- `{preset}`: {extrapolation(summary, found, args.samples, args.seqlen)}")
    print(f"{args.threads} threads, torch {torch.__version__}; {args.samples} x {args.seqlen} calibration tokens\n")
    print(f"| preset | seconds | {' | '.join(names)} | GFLOP/s |\n|---|---|{'---|' * len(names)}---|")
    print("\n".join(rows))
    if {"paper", "best"} <= totals.keys():
        print(f"\n`best` takes {totals['best'] / totals['paper']:.2f} times as long as `paper`.")
    print(
        "\nLLaMA-7B, extrapolated by counting operations (not run), reading and writing left out:\n" + "\n".join(notes)
    )


if __name__ == "__main__":
    main()
