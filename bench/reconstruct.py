"""Scales tuned layer by layer before the whole model: does it help? The trial of docs/quality.md.

    python bench/reconstruct.py build/quality/compact.arb build/tuning/rebuilt.arb --dense MODEL --calib brown.txt
    python bench/tuning.py build/tuning/rebuilt.arb --dense MODEL --calib brown.txt \
        --text wikitext2.test.raw --out build/tuning --settings 2x0.005

The factors of tune.py are learned by Adam for one decoder layer after the other. Its inputs are what the layers before
it, tuned already, give; its outputs are to come near to what the dense layer makes of the same inputs (--aim layer) or
has in the dense model (--aim model). Loss: squared error of a position over the square of what it should be, because
some positions are hundreds of times as large as others.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import arbllm_kernels as arb
from arbllm_kernels import container
from arbllm_kernels.calibration import calibration_ids
from arbllm_kernels.capture import capture
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.models import find_layers
from arbllm_kernels.packed import PARTS
from arbllm_kernels.tune import BETAS, RATE, Factors


def reconstruct(model: nn.Module, dense: nn.Module, ids: Tensor, aim: str, rounds: int, rate: float) -> None:
    name, theirs = find_layers(dense)
    ours = model.get_submodule(name)
    with torch.no_grad():
        captured = capture(dense, theirs, ids)
    inputs, wanted = list(captured.hidden), list(captured.hidden)  # embeddings are the same
    for index, (layer, dense_layer) in enumerate(zip(ours, theirs, strict=True)):
        runs = [calls[index].run for calls in captured.calls]
        with torch.no_grad():
            wanted = [run(dense_layer, x) for run, x in zip(runs, inputs if aim == "layer" else wanted, strict=True)]
        factors = Factors.of(layer)
        optimizer = torch.optim.Adam([factors.flat], lr=rate, betas=BETAS)
        losses, steps = [], rounds * len(ids)
        with factors.at_work():
            for step in range(steps):
                i = step % len(ids)
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                error = (runs[i](layer, inputs[i]) - wanted[i]).square().sum(-1)
                loss = (error / wanted[i].square().sum(-1)).mean()
                (factors.flat.grad,) = torch.autograd.grad(loss, factors.flat)
                optimizer.step()
                losses.append(float(loss.detach()))
        factors.store()
        seen = torch.tensor(losses).view(rounds, -1).mean(1)
        print(f"layer {index}: " + ", ".join(f"{value:.5f}" for value in seen.tolist()), flush=True)
        with torch.no_grad():
            inputs = [run(layer, x) for run, x in zip(runs, inputs, strict=True)]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, help="the .arb file")
    p.add_argument("out", type=Path, help="the .arb file to write")
    p.add_argument("--dense", required=True, help="what it was made from: Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--aim", default="layer", choices=("layer", "model"))
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--rate", type=float, default=RATE)
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    args = p.parse_args()
    checkpoint, start = open_checkpoint(args.dense), time.perf_counter()
    ids = calibration_ids(args.calib, checkpoint.tokenizer(), args.samples, args.seqlen, 0)
    model = arb.load(args.file, dtype=torch.float32)[0]
    reconstruct(model, checkpoint.materialize(torch.float32), ids, args.aim, args.rounds, args.rate)
    stored, tokenizer = container.load(args.file)  # as the file has it: dense tensors in their own type
    for name, layer in stored.named_modules():
        if isinstance(layer, ARBLinear):
            for part in PARTS:
                layer._buffers[part] = model.get_submodule(name)._buffers[part]
    container.save(stored, args.out, tokenizer)
    print(f"{torch.get_num_threads()} threads, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
