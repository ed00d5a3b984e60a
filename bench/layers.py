"""Every linear of a model, one by one: the weighted error of a preset against the paper's on the same Hessian.

    python bench/layers.py MODEL --calib brown.txt --preset best

The inputs are the dense model's, so that every matrix is judged by itself: error = tr((W - Q) H (W - Q)^T) over
tr(W H W^T), with the undamped H. The last line is the worst ratio; the command fails if it is not below 1, or if a
matrix takes more bits than the paper's procedure gives it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import arbllm_kernels as arb
from arbllm_kernels.calibration import calibration_ids
from arbllm_kernels.capture import capture
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.config import PRESETS
from arbllm_kernels.hessian_hooks import HessianCollector
from arbllm_kernels.methods import hessian_factor, solve
from arbllm_kernels.models import find_layers, layer_linears


def quantized_error(W: Tensor, H: Tensor, cfg: arb.QuantConfig) -> tuple[float, float]:
    """(relative weighted error, bits per weight)"""
    packed, _ = solve(W, hessian_factor(H, cfg.damp, ordered=cfg.has_levels), cfg)
    R = W - packed.dequantize()
    return float(((R @ H) * R).sum() / ((W @ H) * W).sum()), packed.bits_per_weight


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--preset", default="best", choices=[name for name in PRESETS if name != "paper"])
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    args = p.parse_args()
    checkpoint = open_checkpoint(args.model)
    model = checkpoint.materialize(torch.float32)
    ids = calibration_ids(args.calib, checkpoint.tokenizer(), args.samples, args.seqlen, 0)
    ours, paper = arb.QuantConfig.preset(args.preset), arb.QuantConfig.preset("paper")
    layers = find_layers(model)[1]
    captured = capture(model, layers, ids)
    rows: list[tuple[float, str]] = []
    print("| linear | paper, bits | paper, error | bits | error | ratio |\n|---|---|---|---|---|---|")
    for index, layer in enumerate(layers):
        linears = layer_linears(layer, str(index))
        with HessianCollector(linears) as collector:
            for hidden, calls in zip(captured.hidden, captured.calls, strict=True):
                collector.add_sample(partial(calls[index].run, layer, hidden))
        for shared in collector.shared_inputs():
            for name in shared.names:
                (before, more), (error, bits) = (
                    quantized_error(linears[name].weight, shared.H, cfg) for cfg in (paper, ours)
                )
                if bits > more:
                    raise SystemExit(f"{index}.{name}: takes {bits:.3f} bits, the paper's procedure {more:.3f}")
                rows.append((error / before, f"{index}.{name}"))
                print(
                    f"| {index}.{name} | {more:.3f} | {before:.5f} | {bits:.3f} | {error:.5f} | {error / before:.3f} |"
                )
        captured.hidden[:] = [
            calls[index].run(layer, hidden) for hidden, calls in zip(captured.hidden, captured.calls, strict=True)
        ]
    ratio, name = max(rows)
    print(
        f"\n{len(rows)} linears, median ratio {sorted(rows)[len(rows) // 2][0]:.3f}, worst ratio {ratio:.3f} ({name})"
    )
    if not ratio < 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
