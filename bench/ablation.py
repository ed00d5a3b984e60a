"""What each step of `arb-levels` gains and what did not pay: the tables of docs/quality.md.

    python bench/ablation.py MODEL --calib brown.txt --held wikitext2.test.raw --records build/quality

Some linears of the dense model are quantized one by one. Error: tr((W - Q) H (W - Q)^T) / tr(W H W^T), H of the dense
model's inputs, undamped; on the calibration text it is H of all 32 windows, "held out" of 8 windows of another text
that lie behind those on which perplexity is measured. Bits and seconds (solver alone) are of all these together.
Perplexity is of whole models, from the records that bench/quality.py has left in the folder --records.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import torch
from steps import PRESETS, SINGLE, STEPS, uncorrelated
from torch import Tensor, nn

import arbllm_kernels as arb
from arbllm_kernels import native_solver
from arbllm_kernels.calibration import calibration_ids
from arbllm_kernels.checkpoints import open_checkpoint
from arbllm_kernels.evaluate import text_ids
from arbllm_kernels.methods import Factor, hessian_factor, solve
from arbllm_kernels.methods.partition import Partition
from arbllm_kernels.models import find_layers
from arbllm_kernels.packed import PackedWeight

LINEARS = ("3.self_attn.q_proj", "3.mlp.down_proj", "15.mlp.gate_proj", "28.self_attn.o_proj")
MEASURED = 32 * 1024  # tokens of the held-out text on which other commands measure perplexity
HELD = 8  # windows
Hessians = dict[str, Tensor]


@torch.no_grad()
def hessians(model: nn.Module, linears: dict[str, nn.Linear], windows: Iterable[Tensor]) -> Hessians:
    """(2/N) sum x x^T of each linear's inputs over N windows, with the dense model."""
    sums = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}

    def collect(name: str) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            sums[name].addmm_(x.T, x)

        return hook

    handles = [linear.register_forward_pre_hook(collect(name)) for name, linear in linears.items()]
    count = 0
    for window in windows:
        model.base_model(input_ids=window[None], use_cache=False)
        count += 1
    for handle in handles:
        handle.remove()
    return {name: H * (2 / count) for name, H in sums.items()}


def error(W: Tensor, Q: Tensor, H: Tensor) -> float:
    R = W - Q
    return float(((R @ H) * R).sum() / ((W @ H) * W).sum())


class Bench:
    """The linears, their Hessians, and a table of variants."""

    def __init__(self, linears: dict[str, nn.Linear], calibration: Hessians, held: Hessians) -> None:
        self.weights = {name: linear.weight.data for name, linear in linears.items()}
        self.calibration, self.held = calibration, held

    def head(self, title: str, *more: str) -> None:
        """more: columns behind those of `show`."""
        names = [name.replace("self_attn.", "").replace("mlp.", "") for name in self.weights]
        print(f"\n**{title}**: error on the calibration text / held out\n")
        cells = ["", *names, "bits", "seconds", *more]
        print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}", flush=True)

    def quantize(self, cfg: arb.QuantConfig, source: Hessians, *, feedback: bool = True) -> dict[str, PackedWeight]:
        """With `feedback` off the solver is told that no two inputs are correlated."""
        packed = {}
        for name, W in self.weights.items():
            H = source[name] if feedback else uncorrelated(source[name])
            packed[name] = solve(W, hessian_factor(H, cfg.damp, ordered=cfg.has_levels), cfg)[0]
        return packed

    def row(
        self, label: str, cfg: arb.QuantConfig, *more: str, source: Hessians | None = None, feedback: bool = True
    ) -> dict[str, PackedWeight]:
        start = time.perf_counter()
        packed = self.quantize(cfg, self.calibration if source is None else source, feedback=feedback)
        self.show(label, packed, time.perf_counter() - start, *more)
        return packed

    def show(
        self, label: str, packed: dict[str, PackedWeight], seconds: float, *more: str, bits: float | None = None
    ) -> None:
        cells = []
        for name, W in self.weights.items():
            Q = packed[name].dequantize()
            cells.append(f"{error(W, Q, self.calibration[name]):.4f} / {error(W, Q, self.held[name]):.4f}")
        size = 8 * sum(pw.nbytes for pw in packed.values()) / sum(W.numel() for W in self.weights.values())
        cells += [f"{bits or size:.3f}", f"{seconds:.1f}", *more]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def steps(bench: Bench, records: Path | None) -> None:
    """Layer errors and perplexity of each step."""
    bench.head("Each step", "perplexity")
    bench.row("ARB-RC + CGB (`paper`)", arb.QuantConfig.preset("paper"), recorded(records, "arb-rc.cgb"))
    for preset in PRESETS:
        title = f"`{preset}`: "
        for name, step in (STEPS | {"256": SINGLE["256"]}).items():
            value = recorded(records, f"variants/{preset}.{name}" if name else preset)
            bench.row(title + step.label, step.config(preset), value, feedback=step.feedback)
            title = ""


def recorded(records: Path | None, name: str) -> str:
    path = None if records is None else records / f"{name}.json"
    return f"{json.loads(path.read_text())['perplexity']:.1f}" if path is not None and path.exists() else "not measured"


def rounds_and_blocks(bench: Bench) -> None:
    bench.head("Rounds of coordinate descent and sizes of blocks, damp 0.01")
    for preset in PRESETS:
        cfg = STEPS["256.damp01"].config(preset)
        for sweeps in (0, 1, 3, 6):
            bench.row(f"`{preset}`, blocks of 256, rounds: {sweeps}", dataclasses.replace(cfg, sweeps=sweeps))
        for size in (128, 512, 2048):
            bench.row(f"`{preset}`, 3 rounds, blocks of {size}", dataclasses.replace(cfg, block_size=size))


def row_thresholds(bench: Bench) -> None:
    """The paper's bitmap with groups told apart by a threshold of each row's own, which costs no bit."""
    cfg = arb.QuantConfig.preset("paper")
    bench.head("Thresholds of the group bitmap, ARB-RC + CGB")
    bench.row("as in the paper: of w^2 / d^2, per block, by its criterion", cfg)
    search = native_solver.partition
    for what in ("w^2 / d^2", "\\|w\\|"):
        for per in ("block", "row"):

            def split(
                weight: Tensor, d: Tensor, cfg: arb.QuantConfig, S: Tensor | None, what: str = what, per: str = per
            ) -> Partition:
                salient = search(weight, d, cfg, S).salient
                value = weight.abs() if what != "w^2 / d^2" else (weight / d).square()
                group = torch.zeros_like(value, dtype=torch.int64)
                for columns in (torch.nonzero(salient == flag)[:, 0] for flag in (True, False)):
                    part = value[:, columns]
                    group[:, columns] = low_side(part if per == "row" else part.reshape(1, -1)).view(part.shape).long()
                return Partition(salient, group)

            with mock.patch.object(native_solver, "partition", split):
                bench.row(f"of {what}, per {per}, nearest of two means", cfg)


def low_side(value: Tensor) -> Tensor:
    """bool [n, k]: what is below the threshold that leaves the least variance on its sides, row by row."""
    k = value.shape[1]
    ordered, order = value.double().sort(1)
    count = torch.arange(1, k + 1, dtype=torch.float64)
    total = ordered.cumsum(1)
    above = total[:, -1:] - total
    explained = total.square() / count + above.square() / (k - count).clamp(min=1)
    rank = order.argsort(1)
    return rank <= explained.argmax(1, keepdim=True)


def column_order(bench: Bench) -> None:
    """The columns are coded one by one: in which order?"""
    bench.head("Order in which columns are coded, `compact`")
    cfg = arb.QuantConfig.preset("compact")
    orders: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "falling activation energy H_jj (as it is)": lambda W, H: -H.diagonal(),
        "rising": lambda W, H: H.diagonal(),
        "as they are stored": lambda W, H: torch.arange(len(H)),
        "falling error of rounding to one level, H_jj |w_j|^2": lambda W, H: -H.diagonal() * W.square().sum(0),
        "falling 1 / [H^-1]_jj": lambda W, H: torch.linalg.inv(H).diagonal(),
    }
    for label, key in orders.items():
        start, packed = time.perf_counter(), {}
        for name, W in bench.weights.items():
            factor = hessian_factor(bench.calibration[name], cfg.damp, ordered=True)
            assert factor.order is not None and factor.H is not None
            back = factor.order.argsort()
            damped = factor.H[back][:, back].double()
            packed[name] = solve(W, reordered(factor, damped, key(W.double(), damped).argsort(stable=True)), cfg)[0]
        bench.show(label, packed, time.perf_counter() - start)


def reordered(factor: Factor, damped: Tensor, order: Tensor) -> Factor:
    """The factor of the same damped Hessian, float64 [m, m], with its columns in another order."""
    H = damped[order][:, order]
    V = torch.linalg.cholesky(H.flip(0, 1)).flip(0, 1)
    U = torch.linalg.solve_triangular(V, torch.eye(len(V), dtype=V.dtype), upper=True)
    return dataclasses.replace(factor, U=U.float(), order=order, H=H.float())


def damping(bench: Bench) -> None:
    bench.head("Damping, 2.3 bits, one block")
    for damp in (0.001, 0.01, 0.1, 0.3):
        bench.row(f"damp {damp}", dataclasses.replace(arb.QuantConfig.preset("compact"), damp=damp))


def calibration(bench: Bench, quarters: list[Hessians], own: Hessians) -> None:
    bench.head("Calibration, `compact`; the first error always on the 32 windows")
    for count in (1, 2, 4):
        bench.row(f"{8 * count} windows", arb.QuantConfig.preset("compact"), source=mean(quarters[:count]))
    bench.row("8 windows that the model wrote", arb.QuantConfig.preset("compact"), source=own)


def row_scales(bench: Bench) -> None:
    """Coarser row scales put into finished weights, and what they would save."""
    bench.head("Row scales of fewer bits, rounded after the fact")
    for preset in ("compact", "best"):
        packed = bench.row(f"`{preset}`, 7 bits in a byte", arb.QuantConfig.preset(preset))
        weights = sum(W.numel() for W in bench.weights.values())
        for bits in (6, 5):
            step = 2 ** (7 - bits)
            coarse = {}
            for name, pw in packed.items():
                codes = ((pw.row_scale.float() / step).round() * step).clamp(max=127).to(torch.uint8)
                coarse[name] = dataclasses.replace(pw, row_scale=codes)
            saved = sum(pw.row_scale.numel() for pw in packed.values()) * (8 - bits)
            size = (8 * sum(pw.nbytes for pw in packed.values()) - saved) / weights
            bench.show(f"{bits} bits", coarse, 0.0, bits=size)


def entropy(bench: Bench) -> None:
    """What an ideal coder could save: order-0 entropy, with a probability per matrix or per column."""
    print("\n**Entropy of the planes**, bits per stored bit, with one probability per matrix / one per column\n")
    print("| | sign | group | second | all planes, bits per weight | of them saved |\n|---|---|---|---|---|---|")
    for preset in ("paper", "compact", "best"):
        found: dict[str, list[Tensor]] = {"sign": [], "group": [], "second": []}
        cfg = arb.QuantConfig.preset(preset)
        for packed in bench.quantize(cfg, bench.calibration).values():
            for block in packed.blocks():
                found["sign"].append(block.sign)
                found["group"].append(block.group.bool())
                if block.second is not None:
                    found["second"].append(block.second[:, block.salient])
        cells, bits, coded = [], 0, 0.0
        for planes in found.values():
            if not any(plane.numel() for plane in planes):
                cells.append("none")
                continue
            ones = torch.cat([plane.double().mean(0) for plane in planes])
            rows = torch.cat([torch.full((plane.shape[1],), float(plane.shape[0])).double() for plane in planes])
            whole, columns = _bits((ones * rows).sum() / rows.sum()), (_bits(ones) * rows).sum() / rows.sum()
            cells.append(f"{float(whole):.4f} / {float(columns):.4f}")
            bits += int(rows.sum())
            coded += float(columns * rows.sum())
        weights = sum(W.numel() for W in bench.weights.values())
        print(
            f"| `{preset}` | {' | '.join(cells)} | {bits / weights:.3f} | {(bits - coded) / weights:.3f} |", flush=True
        )


def _bits(p: Tensor) -> Tensor:
    p = p.clamp(1e-12, 1 - 1e-12)
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


def mean(parts: list[Hessians]) -> Hessians:
    return {name: sum((part[name] for part in parts[1:]), parts[0][name]) / len(parts) for name in parts[0]}


TABLES = {
    "rounds-and-blocks": rounds_and_blocks,
    "column-order": column_order,
    "damping": damping,
    "row-scales": row_scales,
    "entropy": entropy,
    "row-thresholds": row_thresholds,
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="Hugging Face folder or .gguf file")
    p.add_argument("--calib", type=Path, required=True, help="calibration text file")
    p.add_argument("--held", type=Path, required=True, help="text file to measure held-out errors on")
    p.add_argument("--linears", nargs="+", default=list(LINEARS), help="names within the list of decoder layers")
    p.add_argument("--records", type=Path, help="folder of bench/quality.py's records")
    names = ["steps", *TABLES, "calibration"]
    p.add_argument("--tables", nargs="+", default=names, choices=names)
    p.add_argument("--seqlen", type=int, default=512)
    args = p.parse_args()
    checkpoint = open_checkpoint(args.model)
    model, tokenizer = checkpoint.materialize(torch.float32), checkpoint.tokenizer()
    layers = find_layers(model)[1]
    linears: dict[str, nn.Linear] = {name: layers.get_submodule(name) for name in args.linears}
    ids = calibration_ids(args.calib, tokenizer, 32, args.seqlen, 0)
    quarters = [hessians(model, linears, part) for part in ids.split(8)]
    behind = text_ids(args.held, tokenizer)[MEASURED:]
    held = hessians(model, linears, behind[: HELD * args.seqlen].view(HELD, -1))
    bench = Bench(linears, mean(quarters), held)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in args.tables:
        if name == "steps":
            steps(bench, args.records)
        elif name == "calibration":
            own = calibration_ids("self", tokenizer, 8, args.seqlen, 0, model)
            calibration(bench, quarters, hessians(model, linears, own))
        else:
            TABLES[name](bench)


if __name__ == "__main__":
    main()
