"""Bits shared out among matrices by sensitivity, instead of the same for each: the table of docs/quality.md.

    python bench/allot.py MODEL --calib brown.txt --text wikitext2.test.raw

A salient column costs a bit for each of the n weights in it. It is worth lambda / n * sum_i w_ij^2 / [H^-1]_jj, where
lambda says what an error in this matrix's outputs does: "relative" 1 / tr(W H W^T); "gradients" the mean square of the
gradient of log p(token) for tokens drawn from the dense model. Columns are taken in the order of their worth until the
budget of their layer, or of the model, is spent. One pass of the dense model over the calibration text gives H.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import arbllm_kernels as arb
from arbllm_kernels.calibration import calibration_ids
from arbllm_kernels.capture import capture
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.config import LEAST_BITS
from arbllm_kernels.evaluate import perplexity, text_ids
from arbllm_kernels.hessian_hooks import HessianCollector, SharedInput
from arbllm_kernels.methods import hessian_factor, solve
from arbllm_kernels.methods.levels import block_size, salient_count
from arbllm_kernels.models import find_layers, layer_linears

SAME = ("same", "matrix")
WAYS = (SAME, ("relative", "layer"), ("gradients", "layer"), ("gradients", "model"))
WINDOWS = 4  # of the calibration text, for gradients
Worth = dict[str, Tensor]  # of each column of each matrix, by names such as "3.mlp.up_proj"


def all_linears(model: nn.Module) -> dict[str, nn.Linear]:
    layers = find_layers(model)[1]
    return {f"{i}.{name}": m for i, layer in enumerate(layers) for name, m in layer_linears(layer, str(i)).items()}


def layer_inputs(model: nn.Module, ids: Tensor) -> Iterator[tuple[int, SharedInput]]:
    """H of all linears, layer after layer; a layer sees what the caller has done to the weights of those before it."""
    layers = find_layers(model)[1]
    captured = capture(model, layers, ids)
    for index, layer in enumerate(layers):
        pairs = zip(captured.hidden, captured.calls, strict=True)
        runs = [partial(calls[index].run, layer, hidden) for hidden, calls in pairs]
        with HessianCollector(layer_linears(layer, str(index))) as collector:
            for run in runs:
                collector.add_sample(run)
        for shared in collector.shared_inputs():
            yield index, shared
        captured.hidden[:] = [run() for run in runs]


@torch.enable_grad()
def gradients(model: nn.Module, ids: Tensor) -> dict[str, float]:
    """Mean square of the gradient with respect to an output of each linear."""
    linears, generator = all_linears(model), torch.Generator().manual_seed(0)
    outputs: dict[str, Tensor] = {}
    found = dict.fromkeys(linears, 0.0)

    def keep(name: str, _module: nn.Module, _args: object, y: Tensor) -> None:
        outputs[name] = y

    handles = [linear.register_forward_hook(partial(keep, name)) for name, linear in linears.items()]
    model.get_input_embeddings().weight.requires_grad_()  # so that there is a graph
    for window in ids:
        log_p = model(input_ids=window[None], use_cache=False).logits[0].log_softmax(-1)
        drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        wanted = [outputs[name] for name in linears]
        for name, g in zip(linears, torch.autograd.grad(log_p.gather(1, drawn).sum(), wanted), strict=True):
            found[name] += float(g.square().mean()) / len(ids)
    for handle in handles:
        handle.remove()
    return found


def column_worth(model: nn.Module, ids: Tensor, damp: float, sensitivity: str) -> Worth:
    linears = all_linears(model)
    worth: Worth = {}
    known = gradients(model, ids[:WINDOWS]) if sensitivity == "gradients" else None
    for index, shared in layer_inputs(model, ids):
        factor = hessian_factor(shared.H, damp, ordered=True)
        for name in (f"{index}.{name}" for name in shared.names):
            W = linears[name].weight
            weight = 1 / float(((W @ shared.H) * W).sum()) if known is None else known[name]
            salience = W[:, factor.order].square().mean(0) / factor.U.square().sum(0)
            worth[name] = salience * (factor.scale * weight)
    return worth


def allot(model: nn.Module, worth: Worth, cfg: arb.QuantConfig, scope: str) -> dict[str, float]:
    """Bits per weight of each matrix."""
    shapes = {name: tuple(linear.weight.shape) for name, linear in all_linears(model).items()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(name.split(".")[0] if scope == "layer" else "", []).append(name)
    bits = {}
    for names in groups.values():
        rows = torch.cat([torch.full((shapes[name][1],), shapes[name][0]) for name in names])
        owner = torch.cat([torch.full((shapes[name][1],), i) for i, name in enumerate(names)])
        order = torch.cat([worth[name] for name in names]).argsort(descending=True, stable=True)
        # what the same bits for every matrix would buy is there to be spent
        budget = sum(shapes[name][0] * columns(shapes[name], cfg.bits, cfg) for name in names)
        taken = order[rows[order].cumsum(0) <= budget]
        for i, name in enumerate(names):
            bits[name] = least_bits(shapes[name], int((owner[taken] == i).sum()), cfg)
    return bits


def columns(shape: tuple[int, ...], bits: float, cfg: arb.QuantConfig) -> int:
    """Salient columns that a matrix can have."""
    n, m = shape
    return salient_count(n, m, block_size(m, cfg.block_size), bits)


def least_bits(shape: tuple[int, ...], count: int, cfg: arb.QuantConfig) -> float:
    """The least bits per weight that buy `count` salient columns."""
    low, high = LEAST_BITS, 16.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if columns(shape, middle, cfg) < count else (low, middle)
    return high


def quantize(model: nn.Module, ids: Tensor, cfg: arb.QuantConfig, bits: dict[str, float]) -> float:
    """Every matrix with its bits, in place; returns the bits per weight of all together."""
    linears, stored, total = all_linears(model), 0, 0
    for index, shared in layer_inputs(model, ids):
        factor = hessian_factor(shared.H, cfg.damp, ordered=True)
        for name in (f"{index}.{name}" for name in shared.names):
            weight = linears[name].weight
            packed, _ = solve(weight, factor, dataclasses.replace(cfg, bits=bits[name]))
            weight.data = packed.dequantize()
            stored, total = stored + packed.nbytes, total + weight.numel()
    return 8 * stored / total


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--text", type=Path, required=True, help="evaluation text file")
    p.add_argument("--preset", default="compact", choices=("compact", "best"))
    p.add_argument("--ways", nargs="+", type=int, default=range(len(WAYS)), help="rows to measure, by number")
    p.add_argument("--samples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--eval-seqlen", type=int, default=1024)
    p.add_argument("--windows", type=int, default=32)
    args = p.parse_args()
    cfg, tokenizer = arb.QuantConfig.preset(args.preset), open_checkpoint(args.model).tokenizer()
    ids = calibration_ids(args.calib, tokenizer, args.samples, args.seqlen, 0)
    text = text_ids(args.text, tokenizer)
    print(f"| {cfg.label}: sensitivity | shared within | bits | perplexity | all seconds |\n|{'---|' * 5}", flush=True)
    for sensitivity, scope in (WAYS[i] for i in args.ways):
        model, start = open_checkpoint(args.model).materialize(torch.float32).eval(), time.perf_counter()
        if (sensitivity, scope) == SAME:
            bits = dict.fromkeys(all_linears(model), cfg.bits)
        else:
            bits = allot(model, column_worth(model, ids, cfg.damp, sensitivity), cfg, scope)
        taken, seconds = quantize(model, ids, cfg, bits), time.perf_counter() - start
        value = perplexity(model, text, args.eval_seqlen, windows=args.windows)
        print(f"| {sensitivity} | {scope} | {taken:.3f} | {value:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
