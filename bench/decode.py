"""Tokens per second of a model through transformers, dense and packed, and where the time of a token goes.

    python bench/decode.py MODEL FILE.arb [FILE.arb ...] [--tokens 64] [--threads 1 2] [--json out.json]

MODEL is the dense model that the files were made from (folder, hub id or .gguf): it runs in float32 and bfloat16.
Contenders take turns; every figure is the median over all tokens but the first, greedy, batch 1, in milliseconds.
"Linear layers" is the time inside nn.Linear or ARBLinear of the decoder layers, taken in runs of their own with a clock
around each; "calls" is how many of them a token makes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import arbllm_kernels as arb
from arbllm_kernels import native
from arbllm_kernels.evaluate import load_any
from arbllm_kernels.linear import ARBLinear


def step_times(model: Any, ids: torch.Tensor, tokens: int) -> list[float]:
    """Seconds of each decoding step after the prompt, greedy, with the model's own cache."""
    found = []
    out = model(ids, use_cache=True)
    for _ in range(tokens):
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        found.append(time.perf_counter() - start)
    return found[1:]


class Clock:
    """Adds up the time inside the linear layers of the decoder layers."""

    def __init__(self, model: Any) -> None:
        self.seconds, self.calls, self.start = 0.0, 0, 0.0
        self.hooks = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | ARBLinear) and ".layers." in f".{name}":
                self.hooks.append(module.register_forward_pre_hook(self.begin))
                self.hooks.append(module.register_forward_hook(self.end))

    def begin(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.start
        self.calls += 1

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def linear_time(model: Any, ids: torch.Tensor, tokens: int) -> tuple[float, int]:
    """Seconds and calls per token of the linear layers."""
    out = model(ids, use_cache=True)
    clock = Clock(model)
    for _ in range(tokens):
        out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    clock.remove()
    return clock.seconds / tokens, clock.calls // tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # name -> model, activations
    contenders: dict[str, tuple[Any, str]] = {}
    for name in ("fp32", "bf16"):
        model, tokenizer = load_any(options.model, name)
        contenders[f"dense {name}"] = model, "exact"
    for file in options.files:
        for dtype in (torch.float32, torch.bfloat16):
            model = arb.load(file, dtype=dtype)[0]
            for way in native.ACTIVATIONS:
                contenders[f"{file.stem} {str(dtype).removeprefix('torch.')}, {way}"] = model, way
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    rows = []
    with torch.no_grad():
        for threads in options.threads:
            torch.set_num_threads(threads)
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(options.rounds):
                for name, (model, way) in contenders.items():
                    native.set_activations(way)
                    times[name] += step_times(model, ids, options.tokens)
            for name, (model, way) in contenders.items():
                native.set_activations(way)
                seconds, calls = linear_time(model, ids, options.tokens)
                whole = statistics.median(times[name])
                rows.append(
                    {
                        "threads": threads,
                        "model": name,
                        "ms": whole * 1e3,
                        "tokens": 1 / whole,
                        "linear": seconds * 1e3,
                        "calls": calls,
                    }
                )
    native.set_activations(None)
    print("| threads | model | ms per token | tokens/s | linear layers ms | calls | everything else ms |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['threads']} | {r['model']} | {r['ms']:.2f} | {r['tokens']:.1f} | {r['linear']:.2f} | {r['calls']} | "
            f"{r['ms'] - r['linear']:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
