"""On a CUDA device, with fresh random inputs: numbers, no waiting, CUDA graphs. `make test-gpu` runs these."""

from __future__ import annotations

import pytest
import torch
from helpers import random_packed
from products import LAYOUTS, assert_product

from arbllm_kernels import ARBLinear, QuantConfig, linear, quantize_weight
from arbllm_kernels.config import METHODS, PAPER_METHODS
from arbllm_kernels.methods import hessian_factor
from arbllm_kernels.ops import packed_args
from arbllm_kernels.triton_kernels.dequantize import dequantize, stored_columns
from arbllm_kernels.triton_kernels.gemv import gemv
from arbllm_kernels.triton_kernels.solve import block_loop, block_steps, solve_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    print("seed", torch.seed())


def layer(n, m):
    x = torch.randn(4 * m, m) @ (torch.eye(m) + 0.2 * torch.randn(m, m) / m**0.5)
    return torch.randn(n, m) * torch.rand(m).add(0.3) * 0.02, 2 * x.T @ x / 8


@pytest.mark.parametrize("method", METHODS)
def test_the_solver_is_as_good_as_the_plain_one(method):
    cfg, (W, H) = QuantConfig(method=method), layer(256, 384)
    found = quantize_weight(W.cuda(), H.cuda(), cfg, backend="triton").to("cpu")
    expected = quantize_weight(W, H, cfg, backend="torch")
    same = (found.salient_mask == expected.salient_mask).float().mean()
    assert same > 0.97, "candidates that tie to rounding may go either way, hardly more"
    errors = [float((W - pw.dequantize()).square().sum()) for pw in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


SHAPES = ((96, 384), (1, 200), (37, 256), (128, 256))  # last blocks of 128 and 72 columns


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_matrices_of_several_shapes_come_out_as_one_by_one(method):
    cfg, layers = QuantConfig(method=method), [layer(*shape) for shape in SHAPES]
    weights, S = [W.cuda() for W, _ in layers], [(H / 2).cuda() for _, H in layers]
    factors = [hessian_factor(2 * s, cfg.damp) for s in S]
    for (found, loss), *given in zip(solve_batch(weights, factors, cfg, S), weights, factors, S, strict=True):
        ((alone, own_loss),) = solve_batch(*([one] for one in given[:2]), cfg, given[2:])
        assert loss == own_loss
        for part, tensor in alone.tensors().items():
            assert torch.equal(found.tensors()[part], tensor), part


def loop_input(method):
    """The arguments of block_loop, on the device: the steps, what `work` is to be copied from, and the rest."""
    cfg, layers = QuantConfig(method=method), [layer(*shape) for shape in sorted(SHAPES, key=lambda s: -s[1])]
    U = [hessian_factor(H.cuda(), cfg.damp).U for _, H in layers]
    S = [(H / 2).cuda() for _, H in layers] if method == "arb-x" else None
    weights = [W.cuda() for W, _ in layers]
    steps = block_steps([(len(W), W.shape[1]) for W in weights], cfg.block_size, "cuda")
    return steps, weights, (U, cfg, S)


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_block_loop_never_waits(method):
    steps, weights, rest = loop_input(method)
    for mode in ("default", "error"):  # the first run compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            block_loop(steps, [W.clone() for W in weights], *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_a_cuda_graph_holds_the_block_loop(method):
    steps, weights, rest = loop_input(method)
    expected = block_loop(steps, [W.clone() for W in weights], *rest)
    work = [torch.zeros_like(W) for W in weights]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = block_loop(steps, work, *rest)
    for buffer, W in zip(work, weights, strict=True):
        buffer.copy_(W)
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.squares, b.squares)
        assert torch.equal(a.partition.zone, b.partition.zone)
        assert torch.equal(a.scales.row, b.scales.row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 9, 16, 17, 64, 200])
@pytest.mark.parametrize("name", ["arb-rc + cgb", "short last block", "means", "coded row scales"])
def test_products(name, batch, dtype):
    rows, cols, size, options = LAYOUTS[name]
    pw = random_packed(rows, cols, size, **options)
    x = torch.randn(batch, cols).to(dtype)
    y = linear(x.cuda(), pw.to("cuda"))
    assert_product(y.cpu(), x, pw, rounds_weights=dtype is not torch.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_dequantize_has_the_bits_of_the_oracle(name):
    rows, cols, size, options = LAYOUTS[name]
    pw = random_packed(rows, cols, size, **options)
    assert torch.equal(ARBLinear(pw).cuda().dequantize().cpu(), pw.dequantize())
    # Triton's own: where the CUDA kernels were built, the layer does not use it.
    args = packed_args(pw.to("cuda"))
    assert torch.equal(dequantize(*args).cpu(), pw.dequantize())
    stored = stored_columns(*args, first=0, last=pw.layout.rows).cpu()
    assert torch.equal(stored.T, pw.dequantize()[:, pw.order.long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("name", LAYOUTS)
def test_tritons_own_gemv(name, batch, dtype):
    rows, cols, size, options = LAYOUTS[name]
    pw = random_packed(rows, cols, size, **options)
    x = torch.randn(batch, cols).to(dtype)
    y = gemv(x.cuda(), *packed_args(pw.to("cuda")))
    assert_product(y.cpu(), x, pw, rounds_weights=False)


def test_gradients():
    pw = random_packed(64, 256)
    x = torch.randn(5, 256, device="cuda", requires_grad=True)
    linear(x, pw.to("cuda")).square().sum().backward()
    dense = pw.dequantize()
    torch.testing.assert_close(x.grad.cpu(), 2 * (x.detach().cpu() @ dense.T) @ dense, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("batch", [1, 64])
def test_a_cuda_graph_replays_the_layer(batch):
    layer = ARBLinear(random_packed(256, 512)).cuda()
    x = torch.randn(batch, 512, device="cuda", dtype=torch.float16)
    layer(x)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    x.copy_(torch.randn(batch, 512))
    graph.replay()
    torch.testing.assert_close(y, layer(x))
