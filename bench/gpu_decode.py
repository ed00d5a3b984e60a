"""Tokens per second of a model of LLaMA-7B's shape on a CUDA device, dense and packed, batch 1, through transformers.

    python bench/gpu_decode.py paper best [--tokens 16] [--layers 32]

Weights are random, so what it writes means nothing. "eager": transformers' own forward pass, one token at a time.
"graph": the same pass recorded as a CUDA graph and replayed, as a server would. GB: memory of the weights.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from gpu import LAYOUTS
from gpu_layer import SHAPE
from helpers import random_packed

from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.packed import PackedWeight


def dense(layers: int) -> Any:
    with torch.device("cuda"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE)).half().eval()


def pack(model: Any, layout: str) -> None:
    """Every linear of the decoder layers gets memory of its own, and one of two patterns of bits."""
    made: dict[torch.Size, PackedWeight] = {}
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            shape = module.weight.shape
            if shape not in made:
                made[shape] = random_packed(*shape, exponent=-8, **LAYOUTS[layout])
            model.model.layers.set_submodule(name, ARBLinear(made[shape]).cuda())


def ms_per_token(step: Any, tokens: int) -> float:
    times = []
    for _ in range(tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@torch.no_grad()
def measure(model: Any, tokens: int) -> tuple[float, float]:
    """(eager, graph), milliseconds per token."""
    cache = StaticCache(config=model.config, max_cache_len=128)
    ids, position = torch.tensor([[1]], device="cuda"), torch.tensor([0], device="cuda")

    def step() -> None:
        model(input_ids=ids, position_ids=position[None], past_key_values=cache, use_cache=True)

    for _ in range(3):
        step()
    eager = ms_per_token(step, tokens)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:  # a version of transformers whose pass waits for the device
        print(f"No graph: {error}")
        return eager, math.nan
    return eager, ms_per_token(graph.replay, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="+", choices=list(LAYOUTS))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--layers", type=int, default=32)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu_decode.py measures on a CUDA device, and torch finds none here.")
    print(f"{torch.cuda.get_device_name()}, {given.layers} layers\n")
    print(
        "| weights | GB | eager, ms per token | tokens/s | graph, ms per token | tokens/s |\n|---|---|---|---|---|---|"
    )
    model = dense(given.layers)
    for name in ("dense fp16", *given.layouts):
        if name in LAYOUTS:
            model = dense(given.layers) if model is None else model
            pack(model, name)
        torch.cuda.empty_cache()
        size = torch.cuda.memory_allocated() / 1e9
        eager, graph = measure(model, given.tokens)
        print(
            f"| {name} | {size:.1f} | {eager:.2f} | {1e3 / eager:.0f} | {graph:.2f} | {1e3 / graph:.0f} |", flush=True
        )
        model = model if name not in LAYOUTS else None


if __name__ == "__main__":
    main()
