"""The binarizers: what the mathematics promises, awkward zones, and the golden results of an independent program."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arbllm_kernels.config import PAPER_METHODS, QuantConfig
from arbllm_kernels.errors import InputError
from arbllm_kernels.methods import arb, arb_rc, arb_x, billm, hessian_factor, quantize_weight, solve
from arbllm_kernels.methods.binarize import Zone, nearest_of_four
from arbllm_kernels.methods.solve import BINARIZERS

SHAPES = [(1, 128), (3, 40), (17, 1), (64, 128)]


def zone(n: int, k: int, *, full: bool = False, seed: int = 0) -> Zone:
    """float64, so that the inequalities below hold to 1e-9 and not only to rounding."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=g, dtype=torch.float64) + 0.3
    mask = torch.ones(n, k, dtype=torch.bool) if full else torch.rand(n, k, generator=g) < 0.6
    x = torch.randn(3 * k, k, generator=g, dtype=torch.float64)
    return Zone(weight, mask, x.T @ x / 3)


def error(z: Zone, fit) -> torch.Tensor:
    """Squared error per row over the mask."""
    return ((z.weight - fit.values()) * z.mask).square().sum(1)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_theorem_1(n, k):
    """L(t) = L(0) - m (alpha_t^2 - alpha_0^2 - (mu_t - mu_0)^2) <= L(0), with one zone for the whole row.

    The theorem takes alpha after B; Algorithm 1 refines alpha before B, so alpha_t is the exact scale for B_t, which is
    what the next half-step would compute.
    """
    z = zone(n, k, full=True)
    start = billm.binarize(z, 1)
    for t in (1, 2, 5, 15):
        fit = arb.binarize(z, 1, t)
        centred = z.weight - fit.mean[:, None]
        exact = centred.abs().mean(1)
        loss = (centred - exact[:, None] * (2.0 * fit.planes[0] - 1)).square().sum(1)
        alpha0, mean0 = start.row_scale[:, 0], start.mean
        predicted = error(z, start) - k * (exact.square() - alpha0.square() - (fit.mean - mean0).square())
        torch.testing.assert_close(loss, predicted, rtol=1e-9, atol=1e-9)
        assert bool((error(z, fit) <= error(z, start) * (1 + 1e-9)).all())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_arb_rc_never_gets_worse(n, k, order):
    z = zone(n, k)
    losses = [float(error(z, arb_rc.binarize(z, order, t)).sum()) for t in range(8)]
    for before, after in pairwise(losses[1:]):  # the start is not a minimizer, every later step is
        assert after <= before * (1 + 1e-7) + 1e-12
    assert min(losses[1:]) <= losses[0] * (1 + 1e-7) + 1e-12


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_arb_order_two_never_gets_worse(n, k):
    z = zone(n, k)
    losses = [error(z, arb.binarize(z, 2, t)) for t in range(8)]
    for before, after in pairwise(losses):
        assert bool((after <= before * (1 + 1e-7) + 1e-12).all())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_arb_x_lowers_the_output_error(n, k, order):
    z = zone(n, k)

    def output_error(fit):
        R = (z.weight - fit.values()) * z.mask
        return ((R @ z.S) * R).sum(1)

    before, after = output_error(arb.binarize(z, order, 4)), output_error(arb_x.binarize(z, order, 4))
    assert bool((after <= before * (1 + 1e-7) + 1e-9).all())
    assert n == 1 or k == 1 or bool((after < before).any())


def test_output_error_reformulation():
    """tr(R S R^T) = sum_b ||R X_b^T||^2 (section 3.2)."""
    g = torch.Generator().manual_seed(3)
    X = torch.randn(4, 10, 24, generator=g, dtype=torch.float64)
    R = torch.randn(5, 24, generator=g, dtype=torch.float64)
    S = sum(x.T @ x for x in X)
    torch.testing.assert_close(torch.trace(R @ S @ R.T), sum((R @ x.T).square().sum() for x in X))


def test_arb_x_iterates_equation_11():
    """The Gram-matrix form equals the equations as printed, iteration by iteration."""
    z = zone(6, 24, seed=5)
    mask = z.mask.double()
    fit = arb.binarize(z, 1, 3)
    B, mean, alpha = (2.0 * fit.planes[0] - 1) * mask, fit.mean, fit.row_scale[:, 0]
    for _ in range(3):
        ones_S = mask @ z.S
        mean = (ones_S * (z.weight * mask - alpha[:, None] * B)).sum(1) / (ones_S * mask).sum(1)
        B_S = B @ z.S
        alpha = (B_S * (z.weight - mean[:, None]) * mask).sum(1) / (B_S * B).sum(1)
    found = arb_x.binarize(z, 1, 3)
    torch.testing.assert_close(found.mean, mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.row_scale[:, 0], alpha, rtol=1e-7, atol=1e-9)


def test_nearest_of_four_is_brute_force():
    g = torch.Generator().manual_seed(0)
    target = torch.randn(40, 50, generator=g)
    a, b = torch.rand(40, 1, generator=g), torch.rand(40, 1, generator=g)
    target[0, :4] = torch.tensor([0.0, 1.0, -1.0, 0.5])  # ties, with a = b
    a[0] = b[0] = 1.0
    levels = torch.stack([(-a - b), (-a + b), (a - b), (a + b)])[..., 0]
    choice = (target[None] - levels[..., None]).abs().argmin(0)
    plane1, plane2 = nearest_of_four(target, a, b)
    assert torch.equal(plane1, choice >= 2)
    assert torch.equal(plane2, choice % 2 == 1)


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize("order", [1, 2])
def test_empty_and_degenerate_zones_stay_finite(method, order):
    z = zone(5, 12)
    mask = z.mask.clone()
    mask[1] = False  # a row without entries
    mask[:, 2] = False  # a column without entries
    weight = z.weight.clone()
    weight[3] = 0.0  # an all-zero row
    weight[:, 4] = 0.0  # an all-zero column
    for m in (mask, torch.zeros_like(mask)):
        fit = BINARIZERS[method](Zone(weight, m, z.S), order, 15)
        assert bool(torch.isfinite(torch.where(m, fit.values(), 0.0)).all())
        assert bool(torch.isfinite(fit.row_scale).all())


# ---- whole matrices


def matrix(n: int, m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(6 * m, m, generator=g) * (0.2 + torch.rand(m, generator=g))
    return 0.05 * torch.randn(n, m, generator=g) * torch.rand(m, generator=g).exp(), X.T @ X / 3


AWKWARD = [(1, 1, 128), (1, 128, 128), (3, 129, 128), (7, 100, 33), (16, 64, 256), (5, 2, 1)]


@pytest.mark.parametrize("m", [1, 257, 700])  # inverted whole, and by halves of odd widths
def test_factor_of_the_inverse(m):
    X = torch.randn(2 * m, m, dtype=torch.float64)
    H = (X.T @ X).float()
    factor = hessian_factor(H, 0.01)
    U, damped = factor.U.double(), H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(m)
    assert torch.equal(U, U.triu())
    torch.testing.assert_close(U.T @ U @ damped / factor.scale, torch.eye(m).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize("groups,cgb,order", [(1, False, 1), (2, False, 2), (2, True, 2), (4, True, 1), (4, False, 2)])
def test_what_is_stored_is_what_was_propagated(method, groups, cgb, order):
    """Redo the error propagation from the dequantized file: the last block's target must lead to the same result."""
    W, H = matrix(9, 100)
    cfg = QuantConfig(method=method, cgb=cgb, groups=groups, salient_order=order, block_size=32)
    factor = hessian_factor(H, cfg.damp)
    packed, loss = solve(W, factor, cfg, H / 2)
    Q = packed.dequantize()
    work, total = W.clone(), 0.0
    for a in range(0, 100, 32):
        b = min(a + 32, 100)
        E = (work[:, a:b] - Q[:, a:b]) / factor.U.diagonal()[a:b]
        total += 0.5 * float(E.square().sum()) * factor.scale
        work[:, b:] -= E @ factor.U[a:b, b:]
    assert total == pytest.approx(loss, rel=1e-4)
    again, _ = solve(W, factor, cfg, H / 2)
    assert all(torch.equal(t, again.tensors()[part]) for part, t in packed.tensors().items())


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize(("n", "m", "k"), AWKWARD)
def test_awkward_shapes(method, n, m, k):
    W, H = matrix(n, m)
    packed = quantize_weight(W, H, QuantConfig(method=method, block_size=k))
    Q = packed.dequantize()
    assert Q.shape == (n, m)
    assert bool(torch.isfinite(Q).all())
    assert float((W - Q).norm()) < float(W.norm())


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_zero_rows_columns_and_dead_inputs(method):
    W, H = matrix(6, 96)
    W[2] = 0
    W[:, 5] = 0
    H[7] = 0
    H[:, 7] = 0
    Q = quantize_weight(W, H, QuantConfig(method=method, block_size=32)).dequantize()
    assert bool(torch.isfinite(Q).all())
    rest = [j for j in range(96) if j != 7]
    assert float((W - Q)[:, rest].norm()) < float(W.norm())


def test_all_zero_matrix():
    packed = quantize_weight(torch.zeros(4, 64), matrix(4, 64)[1])
    assert float(packed.dequantize().abs().max()) == 0.0


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize("factor", [2.0**-90, 2.0**-30, 2.0**40, 2.0**100])
def test_scaling_the_weights_scales_the_result(method, factor):
    """Huge and tiny scales lose nothing: the exponent carries the magnitude, fp16 only the digits."""
    W, H = matrix(5, 64)
    cfg = QuantConfig(method=method, block_size=32)
    plain, scaled = quantize_weight(W, H, cfg), quantize_weight(W * factor, H, cfg)
    assert torch.equal(scaled.dequantize(), plain.dequantize() * factor)


def test_scaling_the_hessian_changes_nothing():
    W, H = matrix(5, 64)
    assert torch.equal(quantize_weight(W, H * 2.0**40).sign, quantize_weight(W, H).sign)


def test_fp32_scales_are_closer():
    W, H = matrix(32, 128)
    half, single = (quantize_weight(W, H, QuantConfig(scale_dtype=t)) for t in ("fp16", "fp32"))
    assert single.bits_per_weight > half.bits_per_weight
    assert float((W - single.dequantize()).norm()) == pytest.approx(float((W - half.dequantize()).norm()), rel=1e-2)


def test_order_of_the_methods():
    """On data with column structure: refinement beats BiLLM, ARB-RC beats ARB, CGB and more groups help."""
    W, H = matrix(128, 256, seed=2)

    def loss(**knobs):
        return solve(W, hessian_factor(H, 0.01), QuantConfig(**knobs), H / 2)[1]

    assert loss(method="arb", cgb=False) < loss(method="billm", cgb=False)
    assert loss(method="arb-rc", cgb=False) < loss(method="arb", cgb=False)
    assert loss(method="arb-rc", cgb=True) < loss(method="arb-rc", cgb=False)
    assert loss(method="arb-rc", groups=4) < loss(method="arb-rc", groups=2)


@pytest.mark.parametrize(
    ("W", "H", "message"),
    [
        (torch.zeros(0, 4), torch.eye(4), "non-empty"),
        (torch.zeros(4), torch.eye(4), "matrix"),
        (torch.full((2, 4), float("nan")), torch.eye(4), "NaN"),
        (torch.ones(2, 4), torch.full((4, 4), float("inf")), "NaN or Inf"),
        (torch.ones(2, 4), torch.eye(5), r"\[4, 4\]"),
        (torch.ones(2, 4), -torch.eye(4), "positive definite"),
        (torch.ones(2, 4, dtype=torch.int32), torch.eye(4), "floating point"),
        ([[1.0, 2.0]], torch.eye(2), "W is list, must be .* torch.Tensor; use torch.as_tensor"),
        (torch.ones(2, 4).numpy(), torch.eye(4), "W is ndarray"),
        (torch.ones(2, 4), torch.eye(4).numpy(), "H is ndarray"),
        (torch.ones(2, 4, device="meta"), torch.eye(4), r"W \[2, 4\] is on the meta device .* load its weights"),
    ],
)
def test_bad_input(W, H, message):
    with pytest.raises(InputError, match=message):
        quantize_weight(W, H)


@pytest.mark.parametrize("cfg", ["arb-rc", {}])
def test_cfg_must_be_a_config(cfg):
    with pytest.raises(InputError, match=f"cfg is {type(cfg).__name__}, must be a QuantConfig"):
        quantize_weight(torch.ones(2, 4), torch.eye(4), cfg)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_autocast_changes_nothing(backend):
    W, H = matrix(16, 64)
    expected = quantize_weight(W, H, backend=backend).tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantize_weight(W, H, backend=backend).tensors()
    assert all(torch.equal(t, found[name]) for name, t in expected.items())


def test_arb_x_needs_S():
    W, H = matrix(2, 8)
    with pytest.raises(InputError, match="needs S"):
        solve(W, hessian_factor(H, 0.01), QuantConfig(method="arb-x"))
    with pytest.raises(InputError, match=r"S must be \[8, 8\]"):
        quantize_weight(W, H, QuantConfig(method="arb-x"), S=torch.eye(9))


@pytest.fixture(scope="module")
def golden():
    path = Path(__file__).parents[2] / "shared" / "data" / "golden.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}: the golden results live beside the repository, not in it")
    return load_file(path)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", ["billm", "arb", "arb.cgb", "arb-x", "arb-x.cgb", "arb-rc", "arb-rc.cgb"])
def test_golden(golden, name, backend):
    """An independent implementation of the reference: weighted error within 1 %, zones equal."""
    W, H, theirs = golden["W"], golden["H"], golden[f"Q.{name}"]
    cfg = QuantConfig(method=name.split(".")[0], cgb=name.endswith(".cgb"))
    packed = quantize_weight(W, H, cfg, golden["S"], backend=backend)

    def weighted(Q):
        return float((((W - Q) @ H) * (W - Q)).sum())

    assert weighted(packed.dequantize()) == pytest.approx(weighted(theirs), rel=0.01)
    zones = sorted(key for key in golden if key.startswith("zone") and key.endswith(f".{name}"))
    block = next(packed.blocks())
    mine = [block.salient & (block.group == g) for g in range(cfg.salient_groups)]
    mine += [~block.salient & (block.group == g) for g in range(cfg.groups)]
    for key, mask in zip(zones, mine, strict=False):
        assert int((golden[key].bool() != mask).sum()) == 0, key
