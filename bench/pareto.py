"""Perplexity against true bits: RTN and GPTQ beside the rows that bench/quality.py has measured, as a table and a plot.

    python bench/quality.py MODEL --calib brown.txt --text wikitext2.test.raw --out build/quality
    python bench/pareto.py  MODEL --calib brown.txt --text wikitext2.test.raw --out build/quality --plot docs/pareto.png

RTN and GPTQ (groups of 128, GPTQ in order of falling activation energy) are simulated: the weights are replaced by what
they would be quantized to, and the bits are counted, scales and zero points included. GPTQ sees the same calibration
text in the same way as the methods of the paper.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from arbllm_kernels.calibration import calibration_ids
from arbllm_kernels.capture import capture
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.evaluate import perplexity, text_ids
from arbllm_kernels.hessian_hooks import HessianCollector
from arbllm_kernels.methods import hessian_factor
from arbllm_kernels.methods.gptq import gptq
from arbllm_kernels.methods.rtn import rtn
from arbllm_kernels.models import find_layers, layer_linears

GROUP = 128


@torch.no_grad()
def simulate_rtn(model: nn.Module, bits: int) -> float:
    """Round every linear of the decoder layers; returns the bits per weight."""
    total = stored = 0.0
    for index, layer in enumerate(find_layers(model)[1]):
        for linear in layer_linears(layer, str(index)).values():
            result = rtn(linear.weight, bits, GROUP)
            linear.weight.data = result.weight
            total += result.weight.numel()
            stored += result.weight.numel() * result.bits_per_weight
    return stored / total


@torch.no_grad()
def simulate_gptq(model: nn.Module, ids: torch.Tensor, bits: int) -> float:
    """GPTQ, layer after layer as in layer_loop.py; returns the bits per weight."""
    total = stored = 0.0
    layers = find_layers(model)[1]
    captured = capture(model, layers, ids)
    for index, layer in enumerate(layers):
        linears = layer_linears(layer, str(index))
        runs = [
            partial(calls[index].run, layer, hidden)
            for hidden, calls in zip(captured.hidden, captured.calls, strict=True)
        ]
        with HessianCollector(linears) as collector:
            for run in runs:
                collector.add_sample(run)
        for shared in collector.shared_inputs():
            factor = hessian_factor(shared.H, 0.01, ordered=True)
            for name in shared.names:
                result = gptq(linears[name].weight, factor, bits, GROUP)
                linears[name].weight.data = result.weight
                total += result.weight.numel()
                stored += result.weight.numel() * result.bits_per_weight
        captured.hidden[:] = [run() for run in runs]
    return stored / total


def baseline(kind: str, bits: int, args: argparse.Namespace) -> None:
    """Measure one baseline, unless an earlier run has."""
    record = args.out / f"{kind}{bits}.json"
    if record.exists():
        return
    start = time.perf_counter()
    checkpoint = open_checkpoint(args.model)
    tokenizer = checkpoint.tokenizer()
    model = checkpoint.materialize(torch.float32)
    if kind == "gptq":
        ids = calibration_ids(args.calib, tokenizer, args.samples, args.seqlen, 0)
        stored = simulate_gptq(model, ids, bits)
    else:
        stored = simulate_rtn(model, bits)
    seconds = time.perf_counter() - start
    value = perplexity(model, text_ids(args.text, tokenizer), args.eval_seqlen, windows=args.windows)
    row = {"method": f"{kind.upper()} {bits} bits", "perplexity": value, "bits": stored, "quantize_seconds": seconds}
    record.write_text(json.dumps(row, indent=1))


def print_table(rows: list[dict]) -> None:
    print("| method | true bits | perplexity |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {row['method']} | {row['bits']:.3f} | {row['perplexity']:.2f} |")


def plot(rows: list[dict], path: Path) -> None:
    """Perplexity on a logarithmic axis, fp32 as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    families = {"RTN": "o", "GPTQ": "s", "ARB-levels": "*", "BiLLM": "v", "ARB": "^"}
    seen = set()
    for row in rows:
        if row["method"] == "fp32":
            axes.axhline(row["perplexity"], linestyle=":", color="black", label="fp32")
            continue
        family = next(name for name in families if row["method"].startswith(name))
        color = f"C{list(families).index(family)}"
        label = family if family not in seen else None
        seen.add(family)
        axes.plot(row["bits"], row["perplexity"], families[family], color=color, markersize=9, label=label)
        axes.annotate(row["method"], (row["bits"], row["perplexity"]), (5, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="true bits per weight, everything counted", ylabel="perplexity", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--text", type=Path, required=True, help="evaluation text file")
    p.add_argument("--out", type=Path, required=True, help="folder of the records, the same as bench/quality.py's")
    p.add_argument("--plot", type=Path, help="PNG file to write (needs matplotlib)")
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--eval-seqlen", type=int, default=1024)
    p.add_argument("--windows", type=int, default=32)
    p.add_argument("--baselines", nargs="*", default=["rtn", "gptq"], choices=["rtn", "gptq"])
    p.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in args.baselines:
        for bits in args.bits:
            baseline(kind, bits, args)
    rows = sorted((json.loads(path.read_text()) for path in args.out.glob("*.json")), key=lambda row: row["bits"])
    print_table(rows)
    if args.plot is not None:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
