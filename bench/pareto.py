"""Perplexity against true bits: baselines and tuned files beside the rows of bench/quality.py, as a table and a plot.

    python bench/quality.py MODEL --calib brown.txt --text wikitext2.test.raw --out build/quality --methods
    python bench/pareto.py  MODEL --calib brown.txt --text wikitext2.test.raw --out build/quality \
        --known docs/measurements.md --plot docs/pareto.svg

RTN, GPTQ (groups of 128; GPTQ in order of falling activation energy), PB-LLM and WGM are simulated: the weights are
replaced by what they would be quantized to, and the bits are counted, scales, zero points and indices included. Those
that calibrate see the same text in the same way as the methods of the paper. The files of the presets that
bench/quality.py has left in OUT are tuned (tune.py) and measured again. Every row's record is kept in OUT: an
interrupted run goes on with the first missing one. Rows without a record are taken from the table --known.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

import arbllm_kernels as arb
from arbllm_kernels.calibration import calibration_ids
from arbllm_kernels.capture import capture
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.evaluate import perplexity, text_ids
from arbllm_kernels.hessian_hooks import HessianCollector
from arbllm_kernels.methods import hessian_factor
from arbllm_kernels.methods.gptq import gptq
from arbllm_kernels.methods.pb_llm import pb_llm
from arbllm_kernels.methods.rtn import Simulated, rtn
from arbllm_kernels.methods.wgm import wgm
from arbllm_kernels.models import find_layers, layer_linears

BITS = (2, 3, 4)
PLAIN = {f"RTN {bits} bits": partial(rtn, bits=bits) for bits in BITS} | {"WGM": wgm}
CALIBRATED: dict[str, tuple[Callable[..., Simulated], bool]] = {
    f"GPTQ {bits} bits": (partial(gptq, bits=bits), True) for bits in BITS
} | {"PB-LLM": (pb_llm, False)}
TUNED = ("compact", "best")
Made = tuple[nn.Module, float, float]  # model, bits per weight, seconds
FAMILIES = {"RTN": "o", "GPTQ": "s", "WGM": "P", "PB-LLM": "D", "BiLLM": "v", "ARB-levels": "*", "ARB": "^"}


@torch.no_grad()
def simulate(model: nn.Module, name: str, ids: torch.Tensor) -> float:
    """Quantize every linear of the decoder layers, layer after layer as in layer_loop.py; returns bits per weight."""
    total = stored = 0.0
    layers = find_layers(model)[1]
    captured = capture(model, layers, ids) if name in CALIBRATED else None
    for index, layer in enumerate(layers):
        linears = layer_linears(layer, str(index))
        if captured is None:
            found = {key: PLAIN[name](linear.weight) for key, linear in linears.items()}
        else:
            method, ordered = CALIBRATED[name]
            runs = [
                partial(calls[index].run, layer, hidden)
                for hidden, calls in zip(captured.hidden, captured.calls, strict=True)
            ]
            with HessianCollector(linears) as collector:
                for run in runs:
                    collector.add_sample(run)
            found = {}
            for shared in collector.shared_inputs():
                factor = hessian_factor(shared.H, 0.01, ordered=ordered)
                found |= {key: method(linears[key].weight, factor) for key in shared.names}
        for key, result in found.items():
            linears[key].weight.data = result.weight
            total += result.weight.numel()
            stored += result.weight.numel() * result.bits_per_weight
        if captured is not None and index + 1 < len(layers):
            captured.hidden[:] = [run() for run in runs]
    return stored / total


def baseline(name: str, args: argparse.Namespace) -> Made:
    checkpoint = open_checkpoint(args.model)
    model = checkpoint.materialize(torch.float32)
    ids = calibration_ids(args.calib, checkpoint.tokenizer(), args.samples, args.seqlen, 0)
    start = time.perf_counter()
    bits = simulate(model, name, ids)
    return model, bits, time.perf_counter() - start


def tuned(preset: str, args: argparse.Namespace) -> Made:
    out = args.out / f"{preset}.tuned.arb"
    if not (args.out / f"{preset}.arb").exists():
        raise SystemExit(f"{args.out / preset}.arb: make it with bench/quality.py first")
    start = time.perf_counter()
    resume = out.with_name(out.name + ".tuning").exists()
    summary = arb.tune_file(
        args.out / f"{preset}.arb", out, args.model, args.calib, samples=args.samples, seqlen=args.seqlen,
        resume=resume, overwrite=True,
    )  # fmt: skip
    print(summary.line(), flush=True)
    return arb.load(out, dtype=torch.float32)[0], summary.bits_per_weight, time.perf_counter() - start


def measure(name: str, label: str, make: Callable[[], Made], args: argparse.Namespace) -> None:
    """Make and measure one row, unless an earlier run has."""
    record = args.out / f"{name}.json"
    if record.exists():
        return
    model, bits, seconds = make()
    ids = text_ids(args.text, open_checkpoint(args.model).tokenizer())
    value = perplexity(model, ids, args.eval_seqlen, windows=args.windows)
    row = {"method": label, "perplexity": value, "bits": bits, "quantize_seconds": seconds}
    record.write_text(json.dumps(row, indent=1))
    print(f"{label}: {bits:.3f} bits, perplexity {value:.2f}, {seconds:.0f} s", flush=True)


def known_rows(path: Path) -> list[dict]:
    """Rows of the table of docs/measurements.md that bench/quality.py has printed: method, perplexity, true bits."""
    _, found, table = path.read_text().partition("| method | perplexity | true bits |")
    if not found:
        raise SystemExit(f"{path}: holds no table of bench/quality.py")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.partition("\n\n")[0].splitlines()[2:]
    ]
    return [{"method": row[0].split(" (")[0], "perplexity": float(row[1]), "bits": float(row[2])} for row in rows]


def print_table(rows: list[dict]) -> None:
    print("| method | true bits | perplexity |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {row['method']} | {row['bits']:.3f} | {row['perplexity']:.2f} |")


def plot(rows: list[dict], path: Path) -> None:
    """Perplexity on a logarithmic axis, fp32 as a line."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "arbllm", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    seen = set()
    for row in rows:
        if row["method"] == "fp32":
            axes.axhline(row["perplexity"], linestyle=":", color="black", label="fp32")
            continue
        family = next(name for name in FAMILIES if row["method"].startswith(name))
        color = f"C{list(FAMILIES).index(family)}"
        label = family if family not in seen else None
        seen.add(family)
        axes.plot(row["bits"], row["perplexity"], FAMILIES[family], color=color, markersize=9, label=label)
        x, y = row["bits"], row["perplexity"]
        crowded = any(abs(r["bits"] - x) < 0.1 and y < r["perplexity"] < 1.5 * y for r in rows)  # by the label above
        axes.annotate(
            row["method"].removeprefix("ARB-levels, "),
            (x, y),
            (5, -9 if crowded else 4),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set(xlabel="true bits per weight, everything counted", ylabel="perplexity", yscale="log")
    axes.margins(x=0.08)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--text", type=Path, required=True, help="evaluation text file")
    p.add_argument("--out", type=Path, required=True, help="folder of the records, the same as bench/quality.py's")
    names = [*(f"{preset}.tuned" for preset in TUNED), *PLAIN, *CALIBRATED]
    p.add_argument("--rows", nargs="*", default=names, choices=names, help="rows to measure; the table has all records")
    p.add_argument("--known", type=Path, help="file with a table of rows measured before")
    p.add_argument("--plot", type=Path, help="SVG or PNG file to write (needs matplotlib)")
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--eval-seqlen", type=int, default=1024)
    p.add_argument("--windows", type=int, default=32)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.rows:
        preset = name.removesuffix(".tuned")
        if preset in TUNED:
            label = f"{arb.QuantConfig.preset(preset).label}, tuned"
            measure(name, label, partial(tuned, preset, args), args)
        else:
            measure(name.replace(" ", ""), name, partial(baseline, name, args), args)
    rows = {row["method"]: row for row in known_rows(args.known)} if args.known else {}
    rows |= {row["method"]: row for row in map(json.loads, (path.read_text() for path in args.out.glob("*.json")))}
    table = sorted(rows.values(), key=lambda row: row["bits"])
    print()
    print_table(table)
    if args.plot is not None:
        plot(table, args.plot)


if __name__ == "__main__":
    main()
