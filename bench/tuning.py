"""Rounds and step sizes of `arbllm tune`: the table of docs/quality.md.

    python bench/tuning.py build/quality/compact.arb --dense MODEL --calib brown.txt \
        --text wikitext2.test.raw --out build/tuning

Each row tunes the file anew. Perplexity is that of windows behind those that other commands evaluate, so that nothing
is chosen by what is reported elsewhere. Rows have a record in OUT each, and an interrupted row goes on where it was;
its seconds are those since then.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import arbllm_kernels as arb
from arbllm_kernels.evaluate import perplexity, text_ids
from arbllm_kernels.tune import Settings
from arbllm_kernels.tuning import is_interrupted

WINDOW = 1024
EVALUATED, HELD = 32 * WINDOW, 12  # tokens of the text that other commands measure on; windows behind them
SETTINGS = ("2x0.0025", "2x0.005", "2x0.01", "3x0.005")
UNTUNED = "untuned"


def held_perplexity(path: Path, text: Path) -> float:
    model, tokenizer = arb.load(path, dtype=torch.float32)
    return perplexity(model, text_ids(text, tokenizer)[EVALUATED:], WINDOW, windows=HELD)


def measure(name: str, args: argparse.Namespace) -> dict:
    """One row: tune as `name` says, and evaluate; or what an earlier run recorded under this name."""
    record, out = args.out / f"{args.file.stem}.{name}.json", args.out / f"{args.file.stem}.{name}.arb"
    if record.exists():
        return json.loads(record.read_text())
    row = {"perplexity": held_perplexity(args.file, args.text)} if name == UNTUNED else tuned(name, out, args)
    record.write_text(json.dumps(row, indent=1))
    return row


def tuned(name: str, out: Path, args: argparse.Namespace) -> dict:
    rounds, rate = name.split("x")
    settings, start = Settings(epochs=int(rounds), rate=float(rate)), time.perf_counter()
    summary = arb.tune_file(
        args.file, out, args.dense, args.calib, settings, samples=args.samples, seqlen=args.seqlen,
        resume=is_interrupted(out), overwrite=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return {"divergence": summary.divergence, "perplexity": held_perplexity(out, args.text), "seconds": seconds}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, help="the .arb file to tune")
    p.add_argument("--dense", required=True, help="what it was made from: Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--text", type=Path, required=True, help="evaluation text file")
    p.add_argument("--out", type=Path, required=True, help="folder for files and records")
    p.add_argument("--settings", nargs="*", default=SETTINGS, help="rounds x step size, such as 2x0.01")
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| rounds | step size | divergence seen, round by round | perplexity | seconds |\n|---|---|---|---|---|")
    print(f"| 0 | | | {measure(UNTUNED, args)['perplexity']:.2f} | |", flush=True)
    for name in args.settings:
        row, (rounds, rate) = measure(name, args), name.split("x")
        seen = ", ".join(f"{value:.3f}" for value in row["divergence"])
        print(f"| {rounds} | {rate} | {seen} | {row['perplexity']:.2f} | {row['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
