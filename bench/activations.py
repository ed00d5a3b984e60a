"""What int8 activations cost in quality: perplexity of a .arb file with exact and with int8 products.

    python bench/activations.py MODEL.arb --text wikitext2.test.raw [--windows 32 --seqlen 1024]

Long batches are normally dequantized and multiplied exactly, whatever the setting. Here every product goes through the
packed kernels, so that the int8 row shows what decoding sees; the exact row is the ordinary evaluation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import arbllm_kernels as arb
from arbllm_kernels import native, ops
from arbllm_kernels.evaluate import perplexity, text_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--activations", nargs="+", default=list(native.ACTIVATIONS), choices=native.ACTIVATIONS)
    options = parser.parse_args()
    model, tokenizer = arb.load(options.model, dtype=torch.float32)
    ids = text_ids(options.text, tokenizer)
    print(f"| activations | perplexity ({options.windows} windows of {options.seqlen}) | seconds |\n|---|---|---|")
    usual = ops.dense_batches
    for name in options.activations:
        ops.dense_batches = usual if name == "exact" else lambda packed, cols: (ops.NEVER, ops.NEVER)
        start = time.perf_counter()
        with native.forced_activations(name):
            value = perplexity(model, ids, options.seqlen, windows=options.windows)
        print(f"| {name} | {value:.2f} | {time.perf_counter() - start:.0f} |", flush=True)
    ops.dense_batches = usual


if __name__ == "__main__":
    main()
