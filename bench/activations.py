"""What activations in whole numbers cost in quality: perplexity of .arb files by the ways of multiplying.

    arbllm quantize SmolLM2-135M-Instruct.Q4_1.gguf paper.arb --preset paper --calib brown.txt
    python bench/activations.py paper.arb compact.arb best.arb --text wikitext2.test.raw [--windows 32 --seqlen 1024]

For either dtype there is a row in which every W is dequantized and multiplied as in long batches. In the other rows
every product goes through the packed kernels, so that they show what decoding sees.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import torch

import arbllm_kernels as arb
from arbllm_kernels import cpu, native
from arbllm_kernels.evaluate import perplexity, text_ids

# Dtype of the model, activations, whether W is dequantized.
WAYS = {
    "float32": (torch.float32, "exact", True),
    "float32, int8": (torch.float32, "int8", False),
    "bfloat16": (torch.bfloat16, "exact", True),
    "bfloat16, 16 bits": (torch.bfloat16, "exact", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    print(f"| file | way | perplexity ({options.windows} windows of {options.seqlen}) | seconds |")
    print("|---|---|---|---|")
    for path in options.models:
        for name in options.ways:
            dtype, activations, dense = WAYS[name]
            limits = (0 if dense else cpu.NEVER,) * 3
            # Loaded anew for each: a layer keeps the limits of its first product.
            model, tokenizer = arb.load(path, dtype=dtype)
            ids = text_ids(options.text, tokenizer)
            start = time.perf_counter()
            with (
                native.forced_activations(activations),
                mock.patch.object(cpu, "dense_batches", lambda *_, limits=limits: limits),
            ):
                value = perplexity(model, ids, options.seqlen, windows=options.windows)
            print(f"| {path.stem} | {name} | {value:.2f} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
