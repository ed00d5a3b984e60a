"""Method arb-levels: the objective falls step by step, csrc agrees with torch, what ships is what was counted."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from arbllm_kernels import native_solver
from arbllm_kernels.config import QuantConfig
from arbllm_kernels.errors import InputError
from arbllm_kernels.methods import corrected, hessian_factor, levels, quantize_weight
from arbllm_kernels.native import active_isa, available_isas, forced_isa

LEVELS = QuantConfig(method="arb-levels", block_size=128, iters=8)
SHAPES = [(1, 1), (3, 5), (40, 64), (70, 130), (33, 200), (9, 321)]


def example(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights with a few strong columns and the Hessian of correlated inputs of uneven energy."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n, m, generator=g) * torch.exp(0.5 * torch.randn(m, generator=g)) * 0.02
    X = torch.randn(2 * m + 50, m, generator=g) @ (torch.eye(m) + 0.3 * torch.randn(m, m, generator=g) / m**0.5)
    X *= torch.exp(0.8 * torch.randn(m, generator=g))
    return W, 2 * X.T @ X / 4


def error(W: Tensor, H: Tensor, Q: Tensor) -> float:
    R = (W - Q).double()
    return float(((R @ H.double()) * R).sum() / ((W.double() @ H.double()) * W.double()).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2.5, None])
def test_native_equals_torch(shape, bits):
    W, H = example(*shape)
    cfg = dataclasses.replace(LEVELS, bits=bits)
    native, plain = (quantize_weight(W, H, cfg, backend=name) for name in ("native", "torch"))
    for name, part in plain.tensors().items():
        assert torch.equal(part, native.tensors()[name]), name


def test_native_equals_torch_with_fp32_scales():
    W, H = example(40, 130)
    cfg = dataclasses.replace(LEVELS, bits=None, scale_dtype="fp32")
    native, plain = (quantize_weight(W, H, cfg, backend=name) for name in ("native", "torch"))
    assert native.row_base.dtype == torch.float32
    assert error(W, H, native.dequantize()) == pytest.approx(error(W, H, plain.dequantize()), rel=1e-4)


def test_threads_change_nothing():
    W, H = example(5000, 70)
    before = torch.get_num_threads()
    one = native_result(W, H, 1)
    try:
        assert torch.equal(one, native_result(W, H, 3))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", [name for name, here in available_isas().items() if here])
@pytest.mark.parametrize("shape", [(1, 3), (37, 20), (2100, 9)])
def test_instruction_sets_change_nothing(isa, shape):
    W, H = example(*shape)
    with forced_isa("scalar"):
        expected = native_result(W, H, 1)
    with forced_isa(isa):
        assert active_isa() == isa
        assert torch.equal(native_result(W, H, 1), expected)


def native_result(W: Tensor, H: Tensor, threads: int) -> Tensor:
    """Fit and sweep of csrc alone: torch's own products may depend on the number of threads."""
    torch.set_num_threads(threads)
    work = W.T.contiguous()
    col, fitted = levels._first_guess(work, torch.ones(len(work)), 4)
    col, fitted = native_solver.fit_levels(work, torch.ones(len(work)), col, fitted, 3)
    scales = torch.cat([levels._to_scales(fitted), fitted[::2]])
    coupling, salient = H / H.diagonal(), torch.arange(len(work)) % 3 > 0
    col, value, code, change = native_solver.sweep_levels(work, None, coupling, scales, col, salient, torch.float16)
    return torch.cat([col[:, None], value, code.float(), change], 1)


def test_every_step_lowers_the_error():
    """Fit alone, with feedback, and after each round of coordinate descent; the last never rises by its nature."""
    W, H = example(70, 200)
    factor = hessian_factor(H, 0.01, ordered=True)
    w, damped = W.T[factor.order].contiguous() * 16, factor.H
    salient = torch.arange(200) % 3 == 0
    diagonal = factor.U.diagonal()
    coded = levels.start(w, salient, diagonal, 128, 8, torch.float16, levels.TORCH)

    def objective() -> float:
        R = (w - coded.value).double()
        return float((damped.double() @ R * R).sum())

    levels.feedback(coded, w, torch.diag(diagonal), 128, torch.float16, levels.TORCH)
    errors = [objective()]
    coded = levels.start(w, salient, diagonal, 128, 8, torch.float16, levels.TORCH)
    levels.feedback(coded, w, factor.U, 128, torch.float16, levels.TORCH)
    errors.append(objective())
    G = damped @ (w - coded.value)
    for _ in range(4):
        levels.refine(coded, G, damped, 128, torch.float16, levels.TORCH)
        errors.append(objective())
        torch.testing.assert_close(G, damped @ (w - coded.value), rtol=1e-3, atol=1e-3 * float(G.abs().max()))
    assert errors[1] < 0.8 * errors[0] and errors[2] < 0.97 * errors[1]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors))


def test_better_than_the_paper_at_fewer_bits():
    W, H = example(256, 256)
    paper = quantize_weight(W, H, QuantConfig())
    ours = quantize_weight(W, H, dataclasses.replace(LEVELS, bits=paper.bits_per_weight))
    assert ours.bits_per_weight <= paper.bits_per_weight
    assert error(W, H, ours.dequantize()) < 0.5 * error(W, H, paper.dequantize())


@pytest.mark.parametrize("bits", [2.25, 2.5, 2.9, 3.2])
@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (300, 1000)])
def test_bits_are_a_limit_that_is_used(shape, bits):
    n, m = shape
    size = levels.block_size(m, 256)
    assert size % 64 == 0
    count = levels.salient_count(n, m, size, bits)
    layout_bits = 8 * nbytes(n, m, size, count) / (n * m)
    assert count == 0 or layout_bits <= bits
    assert count == m or 8 * nbytes(n, m, size, count + 1) / (n * m) > bits - 64 / (n * m)


def nbytes(n: int, m: int, size: int, salient: int) -> int:
    words, blocks = -(-m // 64) * 8, -(-m // size)
    return n * (2 * words + 6 * blocks + 2) + words + (4 if blocks > 1 else 2) * m + -(-n * salient // 64) * 8


def test_the_size_formula_is_the_files():
    W, H = example(70, 200)
    packed = quantize_weight(W, H, dataclasses.replace(LEVELS, bits=3.9))
    assert 0 < packed.salient_columns < 200
    assert packed.nbytes == nbytes(70, 200, packed.layout.block_size, packed.salient_columns)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_row_scales_of_a_salient_group_add_up_to_a_code(shape):
    W, H = example(*shape)
    codes = quantize_weight(W, H, dataclasses.replace(LEVELS, bits=None)).row_scale.int()  # every column salient
    largest = (codes[..., 0:4:2] + codes[..., 1:4:2]).amax(-1)
    assert int(largest.max()) <= levels.MAX_CODE
    assert bool((largest.amax(1) > 0.8 * levels.MAX_CODE).all())  # the range is used


def test_zero_rows_dead_inputs_and_constant_weights():
    W, H = example(20, 70)
    W[3], W[:, 5], W[7] = 0, 0, 1.0
    H[9], H[:, 9] = 0, 0
    packed = quantize_weight(W, H, LEVELS)
    Q = packed.dequantize()
    assert torch.isfinite(Q).all()
    assert error(W.index_fill(1, torch.tensor([9]), 0.0), H, Q) < 0.05
    assert Q[3].abs().max() < 1e-4


def test_zero_matrix():
    packed = quantize_weight(torch.zeros(4, 70), torch.eye(70), LEVELS)
    assert packed.dequantize().abs().max() < 1e-3


def test_scales_out_of_range_are_refused():
    W = torch.tensor([[1.0, 1e-30], [1e-30, 1.0]])
    assert torch.isfinite(quantize_weight(W, torch.eye(2), LEVELS).dequantize()).all()
    with pytest.raises(InputError, match="NaN or Inf"):
        quantize_weight(torch.full((2, 2), float("nan")), torch.eye(2), LEVELS)


def test_one_massive_input_does_not_decide_the_damping():
    H = torch.eye(101).double()
    H[7, 7] = 1e6
    ordered, plain = (hessian_factor(H, 0.1, ordered=flag) for flag in (True, False))
    added = (ordered.H.diagonal() * ordered.scale - H.diagonal()[ordered.order]).min()
    assert float(added) == pytest.approx(0.1 * (100 + 10) / 101, rel=1e-5)
    assert float(plain.U[0, 0] ** -2 * plain.scale) == pytest.approx(1 + 0.1 * (100 + 1e6) / 101, rel=1e-5)
    H[3, 3] = 0  # dead, which is no part of the mean
    ordered = hessian_factor(1e-3 * H, 0.1, ordered=True)
    alive = ordered.H.diagonal()[ordered.order != 3]
    assert float(alive.min() * ordered.scale) == pytest.approx(1e-3 * (1 + 0.1 * (99 + 10) / 100), rel=1e-5)
    assert torch.isfinite(hessian_factor(torch.zeros(3, 3), 0.1, ordered=True).U).all()


def test_correction_aims_at_the_dense_outputs():
    """||W X' - W* X|| is the least possible, and tr((W* - Q) H (W* - Q)) is the rest but for a constant."""
    W, _ = example(12, 30)
    g = torch.Generator().manual_seed(1)
    dense = torch.randn(30, 500, generator=g)
    ours = dense + 0.3 * torch.randn(30, 30, generator=g) @ dense / 30**0.5
    H, drift = ours @ ours.T, (dense - ours) @ ours.T
    for ordered in (False, True):
        target = corrected(W, hessian_factor(H, 1e-6, ordered=ordered), drift, 1.0)
        best = torch.linalg.lstsq(ours.T, (W @ dense).T).solution.T
        torch.testing.assert_close(target, best, rtol=1e-3, atol=1e-4)
        half = corrected(W, hessian_factor(H, 1e-6, ordered=ordered), drift, 0.5)
        torch.testing.assert_close(half, (W + best) / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", ["work", "before", "coupling", "row_scale", "col", "salient"])
def test_native_sweep_refuses_wrong_shapes_and_types(bad):
    good = {
        "work": torch.zeros(4, 6),
        "before": torch.zeros(4, 6),
        "coupling": torch.zeros(4, 4),
        "row_scale": torch.zeros(6, 6),
        "col": torch.zeros(4),
        "salient": torch.zeros(4, dtype=torch.bool),
    }
    native_solver.sweep_levels(**good, storage=torch.float16)
    with pytest.raises(InputError, match=f"native solver: {bad}"):
        native_solver.sweep_levels(**(good | {bad: good[bad][:-1].double()}), storage=torch.float16)
