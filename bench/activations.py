"""What int8 activations cost in quality: perplexity of .arb files with exact and with int8 products.

    arbllm quantize SmolLM2-135M-Instruct.Q4_1.gguf paper.arb --preset paper --calib brown.txt
    python bench/activations.py paper.arb compact.arb best.arb --text wikitext2.test.raw [--windows 32 --seqlen 1024]

Long batches are normally dequantized and multiplied exactly, whatever the setting. Here every product goes through the
packed kernels, so that the int8 row shows what decoding sees; the exact row is the ordinary evaluation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import torch

import arbllm_kernels as arb
from arbllm_kernels import native, ops
from arbllm_kernels.evaluate import perplexity, text_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--activations", nargs="+", default=list(native.ACTIVATIONS), choices=native.ACTIVATIONS)
    options = parser.parse_args()
    print(f"| file | activations | perplexity ({options.windows} windows of {options.seqlen}) | seconds |")
    print("|---|---|---|---|")
    limits = {"exact": ops.dense_batches, "int8": lambda packed, cols: (ops.NEVER, ops.NEVER)}
    for path in options.models:
        for name in options.activations:
            # Loaded anew for each: a layer keeps the limits of its first product.
            model, tokenizer = arb.load(path, dtype=torch.float32)
            ids = text_ids(options.text, tokenizer)
            start = time.perf_counter()
            with native.forced_activations(name), mock.patch.object(ops, "dense_batches", limits[name]):
                value = perplexity(model, ids, options.seqlen, windows=options.windows)
            print(f"| {path.stem} | {name} | {value:.2f} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
