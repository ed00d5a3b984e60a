"""quantize_weight(backend="triton") under the interpreter against backend="torch"."""

from __future__ import annotations

import pytest
import torch
from cases import block

from arbllm_kernels import InputError, QuantConfig, quantize_weight
from arbllm_kernels.methods import Factor, hessian_factor
from arbllm_kernels.methods.solve import solve
from arbllm_kernels.triton_kernels.arb_rc import refine_arb_rc
from arbllm_kernels.triton_kernels.rounding import rounding_error
from arbllm_kernels.triton_kernels.scales import Scales
from arbllm_kernels.triton_kernels.solve import solve_batch


def layer(n, m):
    x = torch.randn(4 * m, m) @ (torch.eye(m) + 0.2 * torch.randn(m, m) / m**0.5)
    return torch.randn(n, m) * torch.rand(m).add(0.3) * 0.02, 2 * x.T @ x / 8


SMALL = {"block_size": 32, "max_salient": 9, "thresholds": 9, "iters": 3}
CASES = {
    "billm": {"method": "billm", "cgb": False},
    "arb": {"method": "arb"},
    "arb order 1": {"method": "arb", "salient_order": 1},
    "arb-x": {"method": "arb-x"},
    "arb-rc": {"method": "arb-rc"},
    "arb-rc without cgb": {"method": "arb-rc", "cgb": False},
    "arb-rc, four groups, fp32": {"method": "arb-rc", "groups": 4, "cgb": False, "scale_dtype": "fp32"},
}


def test_widest_blocks():
    """Those have options of their own in configs.py."""
    W, H = layer(5, 256)
    for method in ("arb-rc", "arb-x"):
        cfg = QuantConfig(**{**SMALL, "method": method, "block_size": 256, "max_salient": 4})
        found, expected = (quantize_weight(W, H, cfg, backend=backend) for backend in ("triton", "torch"))
        assert torch.equal(found.salient, expected.salient)
        torch.testing.assert_close(found.dequantize(), expected.dequantize(), rtol=2**-10, atol=2**-10 * 0.1)


@pytest.mark.parametrize("name", CASES)
def test_the_same_weight_as_methods(name):
    cfg = QuantConfig(**{**SMALL, **CASES[name]})
    W, H = layer(11, 72)
    W[:, 7] = 0
    H[5] = 0
    H[:, 5] = 0  # a dead input
    found, expected = (quantize_weight(W, H, cfg, backend=backend) for backend in ("triton", "torch"))
    assert_same_weight(found, expected, W, cfg)


def assert_same_weight(found, expected, W, cfg):
    assert found.layout == expected.layout
    assert torch.equal(found.salient, expected.salient)
    assert torch.equal(found.group, expected.group)
    size = float(W.abs().max())
    step = 2**-10 if cfg.scale_dtype == "fp16" else 1e-5  # a scale may round to the next fp16 number
    torch.testing.assert_close(found.dequantize(), expected.dequantize(), rtol=step, atol=step * size)


def test_a_batch_that_shares_its_hessian_and_the_proxy_loss():
    cfg = QuantConfig(**SMALL)
    (W1, H), (W2, _) = layer(5, 48), layer(5, 48)
    factor = hessian_factor(H, cfg.damp)
    for (pw, loss), W in zip(solve_batch([W1, 100 * W2], [factor, factor], cfg), (W1, 100 * W2), strict=True):
        expected, expected_loss = solve(W, factor, cfg, backend="torch")
        assert pw.layout == expected.layout
        assert loss == pytest.approx(expected_loss, rel=1e-3)


@pytest.mark.parametrize("name", ["billm", "arb", "arb-x", "arb-rc", "arb-rc without cgb"])
def test_a_batch_of_all_shapes_as_one_by_one(name, poisoned):
    """Rows of 1 and odd, last blocks of 8 and 16 columns beside whole ones, one of zeros, two that share a Hessian."""
    cfg = QuantConfig(**{**SMALL, "max_salient": 4, "thresholds": 4, "iters": 1, **CASES[name]})
    layers = [layer(*shape) for shape in ((11, 72), (5, 48), (17, 40), (1, 72), (5, 48))]
    weights, S = [W for W, _ in layers], [H / 2 for _, H in layers]
    weights[4].zero_()
    factors = [hessian_factor(H, cfg.damp) for _, H in layers]
    factors[3], S[3] = factors[0], S[0]
    for (found, loss), *given in zip(solve_batch(weights, factors, cfg, S), weights, factors, S, strict=True):
        W, factor, moment = given
        ((alone, own_loss),) = solve_batch([W], [factor], cfg, [moment])
        assert found.layout == alone.layout and loss == own_loss
        for part, tensor in alone.tensors().items():
            assert torch.equal(found.tensors()[part], tensor), part
        energy = float((W @ moment * W).sum())  # the loss of one row is next to nothing, and any partition as good
        assert loss == pytest.approx(solve(W, factor, cfg, moment, backend="torch")[1], rel=1e-2, abs=1e-4 * energy)


def test_errors_of_matrices_of_several_heights(poisoned):
    weight, stack, zone = block(40, 5, k=16)
    scales, d = refine_arb_rc(weight, stack, zone, 4, 2, 2, 1).rounded(torch.float16), torch.rand(2, 16) + 0.3
    error, squares = rounding_error(weight, stack, d, zone, scales, 2)
    wide = Scales(scales.planes, scales.row.float(), col=scales.col.float())
    exact = (weight - wide.values(zone, stack)) / d[stack.owner]
    torch.testing.assert_close(error, exact, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))
    assert squares.shape == (2, 3)
    sums = torch.stack([error[stack.span(i)].double().square().sum() for i in range(2)])
    torch.testing.assert_close(squares.sum(1), sums)
    assert float(squares[1, 0]) > 0 and not squares[1, 1:].any(), "the lower matrix has one part"


def test_what_is_refused():
    W, H = layer(3, 600)
    with pytest.raises(InputError, match="blocks of up to 256 columns, got 512"):
        quantize_weight(W, H, QuantConfig(block_size=512), backend="triton")
    explodes = Factor(torch.eye(48) + 1e7 * torch.ones(48, 48).triu(1), torch.zeros(48, dtype=torch.bool), 1.0)
    with pytest.raises(InputError, match=r"columns 32..47 of W \[3, 48\]: a scale left the range of fp16"):
        solve_batch([W[:, :48]], [explodes], QuantConfig(**{**SMALL, "method": "billm"}))
    with pytest.raises(InputError, match="one device"):
        solve_batch([W, W.to("meta")], [], QuantConfig())
