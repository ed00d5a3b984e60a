"""Seconds to quantize one decoder layer of LLaMA-7B's shape on a CUDA device, calibration included.

    python bench/gpu_layer.py paper best [--samples 16] [--seqlen 2048]

Weights and tokens are random: no figure here is about quality. Each preset runs twice, and the second run counts: the
first compiles. "solver" is the time of the seven linears in it, the rest is forward passes, Hessians and their factors.
"LLaMA-7B" is 32 times the layer.
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from arbllm_kernels import QuantConfig
from arbllm_kernels.config import METHODS, PRESETS
from arbllm_kernels.pipeline import quantize_model
from arbllm_kernels.progress import LinearRecord

LAYERS = 32  # of LLaMA-7B
SHAPE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}


def run(cfg: QuantConfig, ids: torch.Tensor) -> tuple[float, float]:
    """(seconds of the layer, of which of the solver)."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **SHAPE)).half().eval()
    records: list[LinearRecord] = []
    torch.cuda.synchronize()
    start = time.perf_counter()
    quantize_model(model, ids, cfg, progress=False, records=records)
    torch.cuda.synchronize()
    return time.perf_counter() - start, sum(record.seconds for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", choices=[*PRESETS, *METHODS], help="presets, or methods by themselves")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=2048)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu_layer.py measures on a CUDA device, and torch finds none here.")
    ids = torch.randint(SHAPE["vocab_size"], (given.samples, given.seqlen))
    print(f"{torch.cuda.get_device_name()}; {given.samples} x {given.seqlen} calibration tokens\n")
    print("| preset or method | seconds per layer | solver | LLaMA-7B, minutes | peak GB |\n|---|---|---|---|---|")
    for name in given.presets:
        cfg = QuantConfig.preset(name) if name in PRESETS else QuantConfig(method=name)
        run(cfg, ids)
        torch.cuda.reset_peak_memory_stats()
        total, solver = run(cfg, ids)
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(f"| {name} | {total:.2f} | {solver:.2f} | {LAYERS * total / 60:.1f} | {peak:.1f} |", flush=True)


if __name__ == "__main__":
    main()
