"""Every linear of a model, one by one: the weighted error of our presets against the paper's on the same Hessian.

    python bench/layers.py MODEL --calib brown.txt

The inputs are the dense model's, so that every matrix is judged by itself: error = tr((W - Q) H (W - Q)^T) over
tr(W H W^T), with the undamped H. No preset gets more bits for a matrix than the paper's procedure takes there, which on
some is a little less than the 2.9 of `best`. The last lines are the worst ratios; the command fails if one is not
below 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
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
    ours = [name for name in PRESETS if name != "paper"]
    p.add_argument("--presets", nargs="+", default=ours, choices=ours)
    p.add_argument("--only", default="", help="regular expression of the linears, such as 11.*down_proj")
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    args = p.parse_args()
    checkpoint = open_checkpoint(args.model)
    model = checkpoint.materialize(torch.float32)
    ids = calibration_ids(args.calib, checkpoint.tokenizer(), args.samples, args.seqlen, 0)
    configs = {name: arb.QuantConfig.preset(name) for name in ("paper", *args.presets)}
    layers = find_layers(model)[1]
    captured = capture(model, layers, ids)
    ratios: dict[str, list[tuple[float, str]]] = {name: [] for name in args.presets}
    print("| linear | paper, bits | error |" + "".join(f" {name}, bits | error | ratio |" for name in args.presets))
    print("|---|---|---|" + "---|---|---|" * len(args.presets))
    for index, layer in enumerate(layers):
        linears = {n: m for n, m in layer_linears(layer, str(index)).items() if re.search(args.only, f"{index}.{n}")}
        with HessianCollector(linears) as collector:
            for hidden, calls in zip(captured.hidden, captured.calls, strict=True):
                collector.add_sample(partial(calls[index].run, layer, hidden))
        for shared in collector.shared_inputs():
            for name in shared.names:
                compare(f"{index}.{name}", linears[name].weight, shared.H, configs, ratios)
        captured.hidden[:] = [
            calls[index].run(layer, hidden) for hidden, calls in zip(captured.hidden, captured.calls, strict=True)
        ]
    print()
    for preset, rows in ratios.items():
        worst, name = max(rows)
        median = sorted(rows)[len(rows) // 2][0]
        print(f"{preset}: {len(rows)} linears, median ratio {median:.3f}, worst ratio {worst:.3f} ({name})")
    if not all(max(rows)[0] < 1 for rows in ratios.values()):
        raise SystemExit(1)


def compare(
    name: str, W: Tensor, H: Tensor, configs: dict[str, arb.QuantConfig], ratios: dict[str, list[tuple[float, str]]]
) -> None:
    """One row of the table."""
    error, bits = quantized_error(W, H, configs["paper"])
    cells = [f"{bits:.3f} | {error:.5f}"]
    for preset, rows in ratios.items():
        cfg = configs[preset]
        assert cfg.bits is not None, f"preset {preset} has a limit"
        ours, taken = quantized_error(W, H, dataclasses.replace(cfg, bits=min(cfg.bits, bits)))
        if taken > bits:
            raise SystemExit(f"{name}: {preset} takes {taken:.3f} bits, the paper's procedure {bits:.3f}")
        rows.append((ours / error, name))
        cells.append(f"{taken:.3f} | {ours:.5f} | {ours / error:.3f}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
