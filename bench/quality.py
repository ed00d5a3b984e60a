"""The quality table of docs/measurements.md: perplexity against true bits, method by method, on a real model.

    python bench/quality.py MODEL --calib brown.txt --text wikitext2.test.raw --out build/quality
    python bench/quality.py MODEL --calib brown.txt --text wikitext2.test.raw --out build/quality --methods --variants

The second command is for docs/quality.md: presets made in another way, one knob, calibration text or dtype at a time.

Each row quantizes MODEL through the same pipeline as `arbllm quantize`, loads the file it wrote, and measures that. The
row's file is kept in OUT with a JSON record beside it: an interrupted table goes on where it was, and a row's seconds
are those since then.
"formula" is the size by closed formulas, computed from shapes and salient counts alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import steps
import torch
from rich.console import Console
from torch import Tensor

import arbllm_kernels as arb
from arbllm_kernels.calibration import SELF, calibration_ids
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.config import PAPER_METHODS, PRESETS
from arbllm_kernels.evaluate import load_any, perplexity, text_ids
from arbllm_kernels.inspect import WeightReport, inspect
from arbllm_kernels.pipeline import quantize_checkpoint
from arbllm_kernels.table import round_embeddings

console = Console(highlight=False, soft_wrap=True)
FP32 = "fp32"
MIXED = "mixed"  # calibration text: half of --calib, half written by the model
PRESET = {name: arb.QuantConfig.preset(name) for name in PRESETS}
CALIBRATED = {
    "compact.self": ("compact", "calibrated on text of the model's", SELF),
    "compact.mixed": ("compact", "calibrated on both, half and half", MIXED),
}
ROUNDED = {"best.int8": ("best", "embeddings in 8 bits")}
VARIANTS = (*ROUNDED, *CALIBRATED, *steps.VARIANTS)
FOLDER = "variants"  # in --out
Make = Callable[[Path], object]  # writes the file


def formula_bits(w: WeightReport) -> float:
    """Bits of one matrix by the closed formulas; c salient columns, n x m, block k, fp16 scales, two groups."""
    (n, m), c = w.shape, w.salient_columns
    per_block = -(-m // w.block_size) / m  # 1 / k, exactly, for a short last block too
    if w.method == "arb-levels":
        return 2 + c / m + 48 * per_block + 16 / m + (17 if m <= w.block_size else 33) / n
    if w.method == "arb-rc":
        return 2 + c / m + (96 if w.salient_groups > 1 else 64) * per_block + (33 + 32 * c / m) / n
    return 2 + (n * c + m) / (n * m) + (160 if w.salient_groups > 1 else 112) * per_block


def quantized(source: str, cfg: arb.QuantConfig, args: argparse.Namespace, calib: str | None = None) -> Make:
    """`calib`: None for --calib, SELF or MIXED."""

    def make(out: Path) -> object:
        resume = out.with_name(out.name + ".partial").exists()
        text = mixed_ids(source, args) if calib == MIXED else calib or args.calib
        return quantize_checkpoint(
            source, out, cfg, text, samples=args.samples, seqlen=args.seqlen, seed=0, resume=resume, overwrite=True
        )

    return make


def stepped(make: Make, step: steps.Step) -> Make:
    def made(out: Path) -> object:
        with steps.at_work(step):
            return make(out)

    return made


def mixed_ids(source: str, args: argparse.Namespace) -> Tensor:
    checkpoint, half = open_checkpoint(source), args.samples // 2
    tokenizer, model = checkpoint.tokenizer(), checkpoint.materialize(torch.float32)
    text = calibration_ids(args.calib, tokenizer, args.samples - half, args.seqlen, 0)
    return torch.cat([text, calibration_ids(SELF, tokenizer, half, args.seqlen, 0, model)])


def rounded(preset: str, args: argparse.Namespace, out: Path) -> None:
    """The preset's file with embedding and head in 8 bits."""
    model, tokenizer = arb.load(args.out / f"{preset}.arb")
    print(round_embeddings(model))
    arb.save(model, out, tokenizer)


def variant(name: str, args: argparse.Namespace) -> tuple[str, Make]:
    """(label, how to make it)"""
    if name in ROUNDED:
        preset, changed = ROUNDED[name]
        make: Make = partial(rounded, preset, args)
    elif name in CALIBRATED:
        preset, changed, calib = CALIBRATED[name]
        make = quantized(args.model, PRESET[preset], args, calib)
    else:
        preset, step = steps.VARIANTS[name]
        changed, make = step.label, stepped(quantized(args.model, step.config(preset), args), step)
    return f"{PRESET[preset].label}, {changed}", make


def measure(name: str, label: str, make: Make, args: argparse.Namespace) -> dict:
    """One row: make the file, load, evaluate, count; or what an earlier run recorded under this name."""
    out, record = args.out / f"{name}.arb", args.out / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    console.rule(label)
    start = time.perf_counter()
    make(out)
    seconds = time.perf_counter() - start
    model, tokenizer = arb.load(out, dtype=torch.float32)
    ids = text_ids(args.text, tokenizer)
    report = inspect(out)
    if report.nbytes != out.stat().st_size:
        raise SystemExit(f"{out}: inspect counts {report.nbytes} bytes, the file has {out.stat().st_size}")
    weights = sum(w.shape[0] * w.shape[1] for w in report.weights)
    formula = sum(formula_bits(w) * w.shape[0] * w.shape[1] for w in report.weights) / weights
    row = {
        "method": label,
        "perplexity": perplexity(model, ids, args.eval_seqlen, windows=args.windows),
        "bits": report.bits_per_weight,
        "formula_bits": formula,
        "nominal_bits": report.nominal_bits_per_weight,
        "salient": sum(w.salient_columns * w.shape[0] for w in report.weights)
        / sum(w.shape[1] * w.shape[0] for w in report.weights),
        "file_bytes": report.nbytes,
        "quantize_seconds": seconds,
    }
    record.write_text(json.dumps(row, indent=1))
    return row


def fp32_row(source: str, args: argparse.Namespace) -> dict:
    record = args.out / "fp32.json"
    if not record.exists():
        model, tokenizer = load_any(source, FP32)
        value = perplexity(model, text_ids(args.text, tokenizer), args.eval_seqlen, windows=args.windows)
        record.write_text(json.dumps({"method": FP32, "perplexity": value, "bits": 32.0}))
    return json.loads(record.read_text())


def print_table(rows: list[dict]) -> None:
    print("| method | perplexity | true bits | by formula | nominal | salient | file MB | quantize s |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        if r["method"] == FP32:
            print(f"| fp32 | {r['perplexity']:.2f} | 32 | | | | | |")
            continue
        print(
            f"| {r['method']} | {r['perplexity']:.1f} | {r['bits']:.3f} | {r['formula_bits']:.3f} | "
            f"{r['nominal_bits']:.3f} | {r['salient']:.1%} | {r['file_bytes'] / 1e6:.1f} | "
            f"{r['quantize_seconds']:.0f} |"
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--text", type=Path, required=True, help="evaluation text file")
    p.add_argument("--out", type=Path, required=True, help="folder for files and records")
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--eval-seqlen", type=int, default=1024)
    p.add_argument("--windows", type=int, default=32)
    p.add_argument("--methods", nargs="*", default=list(PAPER_METHODS), choices=PAPER_METHODS)
    p.add_argument("--presets", nargs="*", default=["best", "compact"], choices=PRESETS)
    p.add_argument("--variants", nargs="*", choices=VARIANTS, help="of the presets; none named: all")
    args = p.parse_args()
    (args.out / FOLDER).mkdir(parents=True, exist_ok=True)
    rows = [fp32_row(args.model, args)]
    papers = [(method, cgb) for method in args.methods for cgb in (False, True)]
    configs = {m + (".cgb" if cgb else ""): arb.QuantConfig(method=m, cgb=cgb) for m, cgb in papers}
    configs |= {preset: PRESET[preset] for preset in args.presets}
    for name, cfg in configs.items():
        rows.append(measure(name, cfg.label, quantized(args.model, cfg, args), args))
    for name in VARIANTS if args.variants == [] else args.variants or ():
        rows.append(measure(f"{FOLDER}/{name}", *variant(name, args), args))
    console.rule()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print_table(rows)


if __name__ == "__main__":
    main()
