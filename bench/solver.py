"""Seconds to quantize one matrix: native solver, plain torch, and the search as the paper writes it.

    python bench/solver.py
    python bench/solver.py --shapes 4096x4096 --methods arb-rc arb-x --threads 2

Synthetic weights (heavy-tailed, with column structure) and inputs, block 128, 15 iterations, CGB. The check is first:
on a block of each shape all three searches must choose the same partition, or no time is printed. "direct" is the time
of the direct search (tests/direct_search.py) on `--direct-blocks` blocks, scaled to all blocks, plus what plain torch
spends outside its own search. Every other time is a median of whole runs.

GOMP_SPINCOUNT is set to 10000: otherwise the threads of torch's operations spin for ten milliseconds after each and
take the second processor from the native code that comes next.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is loaded

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import direct_search

from arbllm_kernels import native_solver
from arbllm_kernels.config import PAPER_METHODS, QuantConfig
from arbllm_kernels.methods import hessian_factor
from arbllm_kernels.methods.partition import partition

solver = importlib.import_module("arbllm_kernels.methods.solve")  # the package's own `solve` is the function
LLAMA_7B = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # weights of its Linears
TIE = 1e-5  # the direct search sums float32 errors: candidates this close (of sum s^2) may be told apart differently


def problem(n: int, m: int) -> tuple[Tensor, Tensor]:
    """W [n, m] and H [m, m]."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(n, m, generator=g) * torch.rand(m, generator=g).mul(2).exp() * torch.rand(n, 1, generator=g) * 0.02
    x = torch.randn(m + 256, m, generator=g) * (0.1 + 2 * torch.rand(m, generator=g))
    return W, x.T @ x


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def same_partition(weight: Tensor, d: Tensor, cfg: QuantConfig, S: Tensor | None) -> tuple[str | None, float]:
    """What differs between the searches on one block (None: nothing), and the seconds of the direct one."""
    found = {"native": native_solver.partition(weight, d, cfg, S), "torch": partition(weight, d, cfg, S)}
    start = time.perf_counter()
    salient, group = direct_search.partition(weight, d, cfg, S)
    seconds = time.perf_counter() - start
    s = (weight / d).square().double()

    def error(group: Tensor) -> float:
        return direct_search.squared_error(s, direct_search.zones(salient, group, cfg.groups)) / float(s.square().sum())

    for name, p in found.items():
        if not torch.equal(p.salient, salient):
            return f"{name} and direct search choose other salient columns", seconds
        if not torch.equal(p.group, group) and abs(error(p.group) - error(group)) > TIE:
            return f"{name} and direct search choose other groups", seconds
    return None, seconds


class Shares:
    """While it is open, `solve` notes the seconds of its search, its refinement and its error propagation.

    For arb-levels these are the two native loops, fit and sweep; its propagation is not told apart.
    """

    def __init__(self, backend: str) -> None:
        self._inner = solver._backend(backend, torch.device("cpu"))
        self._names = ("_backend", "_propagate")
        self._before = {name: getattr(solver, name) for name in self._names}
        self.seconds: dict[str, float] = dict.fromkeys(("search", "refine", "products"), 0.0)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            self.seconds[name] += time.perf_counter() - start
            return result

        return run

    def __enter__(self) -> Shares:
        inner = self._inner
        timed = solver.Backend(
            self._timed("search", inner.partition),
            {name: self._timed("refine", b) for name, b in inner.binarizers.items()},
            type(inner.levels)(self._timed("search", inner.levels.fit), self._timed("refine", inner.levels.sweep)),
        )
        solver._backend = lambda *_: timed
        solver._propagate = self._timed("products", self._before["_propagate"])
        return self

    def __exit__(self, *exception: object) -> None:
        for name, function in self._before.items():
            setattr(solver, name, function)


def timed_solve(backend: str, W: Tensor, factor: object, cfg: QuantConfig, S: Tensor) -> dict[str, float]:
    """Seconds of one run: total, search, refine, products, and the rest (rounding, packing)."""
    with Shares(backend) as shares:
        start = time.perf_counter()
        solver.solve(W, factor, cfg, S)
        total = time.perf_counter() - start
    return {"total": total, **shares.seconds, "rest": total - sum(shares.seconds.values())}


def median_solve(repeats: int, *args: Any) -> dict[str, float]:
    """The run of median total, so that its parts add up."""
    runs = sorted((timed_solve(*args) for _ in range(repeats)), key=lambda r: r["total"])
    return runs[len(runs) // 2]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", default=["1024x2048", "4096x4096"], help="rows x columns")
    p.add_argument("--methods", nargs="+", default=list(PAPER_METHODS), choices=PAPER_METHODS)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--repeats", type=int, default=3, help="runs of the native solver")
    p.add_argument("--torch-repeats", type=int, default=1)
    p.add_argument("--direct-blocks", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)

    rows, per_weight = [], {}
    for shape in args.shapes:
        n, m = (int(side) for side in shape.split("x"))
        W, H = problem(n, m)
        S = H / 2
        factoring = median_seconds(lambda H=H: hessian_factor(H, 0.01), args.repeats)
        factor = hessian_factor(H, 0.01)
        d = factor.U.diagonal()
        for method in args.methods:
            cfg = QuantConfig(method=method)
            k, blocks = cfg.block_size, -(-m // cfg.block_size)
            direct = 0.0
            for b in range(min(args.direct_blocks, blocks)):
                columns = slice(b * k, min((b + 1) * k, m))
                local = S[columns, columns] if method == "arb-x" else None
                trouble, seconds = same_partition(W[:, columns], d[columns], cfg, local)
                if trouble:
                    raise SystemExit(f"{shape} {cfg.label}, block {b}: {trouble}; no times are printed")
                direct += seconds
            native = median_solve(args.repeats, "native", W, factor, cfg, S)
            plain = median_solve(args.torch_repeats, "torch", W, factor, cfg, S)
            written = direct / min(args.direct_blocks, blocks) * blocks + plain["total"] - plain["search"]
            per_weight[cfg.label] = native["total"] / (n * m)
            shares = " / ".join(
                f"{native[name] / native['total']:.0%}" for name in ("search", "refine", "products", "rest")
            )
            rows.append(
                f"| {n} x {m} | {cfg.label} | {native['total']:.2f} | {plain['total']:.2f} | {written:.1f} | "
                f"{plain['total'] / native['total']:.1f} | {written / native['total']:.0f} | {shares} | "
                f"{factoring:.2f} |"
            )
            print(rows[-1], file=sys.stderr)
    print(f"{args.threads} threads, torch {torch.__version__}; the partitions agree on every block checked\n")
    print(
        "| matrix | method | native s | torch s | direct s | torch / native | direct / native | "
        "search / refine / products / rest | Cholesky s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print("\nLLaMA-7B, extrapolated by weights from the last shape (native `solve` alone, without forward passes):")
    for label, seconds in per_weight.items():
        print(f"- {label}: {seconds * LLAMA_7B / 60:.0f} min")


if __name__ == "__main__":
    main()
