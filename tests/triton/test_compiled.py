"""Every kernel as compiled for sm_80, executed on the CPU by ptxvm: numbers, bounds, shared-memory races, traffic.

ptxvm is not part of this repository: it is looked for in $ARBLLM_PTXVM, then in ../shared beside the repository.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import assert_same_fit, block
from helpers import random_packed
from products import LAYOUTS, assert_product

from arbllm_kernels import QuantConfig
from arbllm_kernels.methods import hessian_factor, levels, solve
from arbllm_kernels.methods.solve import BINARIZERS
from arbllm_kernels.ops import packed_args
from arbllm_kernels.triton_kernels.arb import refine_arb
from arbllm_kernels.triton_kernels.arb_rc import refine_arb_rc
from arbllm_kernels.triton_kernels.dequantize import dequantize
from arbllm_kernels.triton_kernels.gemm import gemm
from arbllm_kernels.triton_kernels.gemv import gemv
from arbllm_kernels.triton_kernels.launch import launched_by
from arbllm_kernels.triton_kernels.levels import Sweeper
from arbllm_kernels.triton_kernels.solve import solve_batch

PLACES = [os.environ.get("ARBLLM_PTXVM", ""), str(Path(__file__).resolve().parents[3] / "shared")]
FOUND = next((place for place in PLACES if place and (Path(place) / "ptxvm").is_dir()), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason=f"ptxvm, which runs PTX on the CPU, is not in {PLACES[1]}")


@pytest.fixture
def launches() -> Iterator[list[tuple[str, object]]]:
    """Kernels run compiled, with every check of ptxvm on; the list collects (kernel, what ptxvm saw)."""
    assert FOUND is not None
    sys.path.append(FOUND)
    import ptxvm

    seen: list[tuple[str, object]] = []

    def run(kernel, grid, *args, **options):
        options.pop("maxnreg", None)  # a limit for the assembler, which is not part of this
        result = ptxvm.triton_launch(kernel, grid, *args, **options)
        assert not result.warnings, result.warnings
        seen.append((kernel.__name__, result))

    with launched_by(run):
        yield seen
    sys.path.remove(FOUND)


@pytest.mark.parametrize("order", [1, 2])
def test_arb_rc(launches, order):
    given, knobs = block(37, 1, 19, k=48), (4, 2, order, 2)
    found = refine_arb_rc(*given, *knobs)
    assert len(launches) == (7 if order == 2 else 4)
    assert_same_fit(found, BINARIZERS["arb-rc"], *given, *knobs)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("method", ["arb", "arb-x"])
def test_arb(launches, method, order):
    given, knobs = block(19, 1, 33, k=40), (4, 2, order, 4)
    x = torch.randn(3, 99, 40) + 0.3
    S = x.transpose(1, 2) @ x if method == "arb-x" else None
    found = refine_arb(*given, *knobs, S)
    assert [name for name, _ in launches] == ["arb_fit"]
    assert_same_fit(found, BINARIZERS[method], *given, *knobs, S)


@pytest.mark.parametrize(
    ("method", "block_size", "shapes"),
    [
        ("arb-rc", 32, [(19, 56), (37, 40), (16, 56)]),
        ("arb-x", 32, [(19, 56), (37, 40), (16, 56)]),
        ("arb-rc", 256, [(16, 256), (5, 64)]),
    ],
)
def test_solver(launches, poisoned, method, block_size, shapes):
    """Matrices of several shapes together; their last blocks have widths of their own."""
    cfg = QuantConfig(method=method, block_size=block_size, max_salient=6, thresholds=7, iters=1)
    x = [torch.randn(4 * m, m) for _, m in shapes]
    weights, H = [torch.randn(n, m) * torch.rand(m).add(0.3) for n, m in shapes], [each.T @ each for each in x]
    factors = [hessian_factor(each, cfg.damp) for each in H]
    for (found, loss), *given in zip(solve_batch(weights, factors, cfg, H), weights, factors, H, strict=True):
        W, factor, S = given
        expected_weight, expected_loss = solve(W, factor, cfg, S, backend="torch")
        assert torch.equal(found.salient, expected_weight.salient)
        assert torch.equal(found.group, expected_weight.group)
        torch.testing.assert_close(found.dequantize(), expected_weight.dequantize(), rtol=2**-10, atol=2**-10 * 4)
        assert loss == pytest.approx(expected_loss, rel=1e-3)
    judged = {"output_gain_kernel"} if method == "arb-x" else set()
    refined = "arb_fit" if method == "arb-x" else "arb_rc_pass"
    names = [name for name, _ in launches]
    assert names.count("rounding_pass") == (2 if block_size == 256 else 3), "32; 24 and 8 columns; 256 and 64"
    assert set(names) == judged | {
        *("sensitivity_pass", "rank_columns", "candidate_gains", "columns_kernel", "magnitudes"),
        *("quantile_thresholds", "split_kernel", refined, "rounding_pass"),
    }


@pytest.mark.parametrize("storage", [torch.float16, torch.float32])
def test_levels(launches, storage):
    work, before, coupling = torch.randn(5, 70), torch.randn(5, 70), torch.randn(5, 5) * 0.1
    scales = torch.rand(6, 70).sort(0, descending=True).values
    given = (work, before, coupling, scales, torch.rand(5) + 0.5, torch.rand(5) < 0.5, storage)
    found, expected = Sweeper().sweep(*given), levels.sweep(*given)
    assert [name for name, _ in launches] == ["levels_step"] * 6
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["arb-rc + cgb", "means and four groups", "coded row scales", "explicit order"])
def test_dequantize(launches, name):
    rows, cols, size, options = LAYOUTS[name]
    pw = random_packed(rows, cols, size, **options)
    assert torch.equal(dequantize(*packed_args(pw)), pw.dequantize())


@pytest.mark.parametrize(
    ("name", "batch", "dtype"),
    [
        ("arb-rc + cgb", 1, torch.float16),
        ("arb-rc + cgb", 3, torch.bfloat16),
        ("arb-rc + cgb", 8, torch.float32),
        ("means and four groups", 2, torch.float32),
        ("coded row scales", 8, torch.float16),
        ("explicit order", 1, torch.float16),
    ],
)
def test_gemv(launches, name, batch, dtype):
    rows, cols, size, options = LAYOUTS[name]
    pw = random_packed(rows, cols, size, **options)
    x = torch.randn(batch, cols).to(dtype)
    assert_product(gemv(x, *packed_args(pw)), x, pw, rounds_weights=False)
    assert [kernel for kernel, _ in launches] == ["gemv_kernel", "add_parts"]
    (_, result), once = launches[0], pw.sign.nbytes + pw.group.nbytes + pw.second.nbytes
    assert result.memory["global_footprint_read_bytes"] >= once, "every bit of the weight is read"


def test_products_of_a_presets_layout(launches):
    """One block of 2,048 columns, row scales in bytes, as `best` and `compact` have them."""
    pw = random_packed(33, 2048, 2048, coded=True, shared=True, ordered=True, salient=0.5)
    x = torch.randn(17, 2048).half()
    assert_product(gemv(x[:1], *packed_args(pw)), x[:1], pw, rounds_weights=False)
    assert_product(gemm(x, *packed_args(pw)), x, pw, rounds_weights=True)


@pytest.mark.parametrize(("batch", "dtype"), [(3, torch.float16), (70, torch.bfloat16), (40, torch.float32)])
def test_gemm(launches, batch, dtype):
    pw = random_packed(37, 200, 128, coded=True, shared=True, ordered=True)
    x = torch.randn(batch, 200).to(dtype)
    assert_product(gemm(x, *packed_args(pw)), x, pw, rounds_weights=dtype is not torch.float32)
    assert [kernel for kernel, _ in launches] == ["gemm_kernel", "add_parts"]
