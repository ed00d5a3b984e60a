"""The short way past the dispatcher: same results as the op, and only where nothing but the product is wanted."""

from __future__ import annotations

import copy
import gc
import io
import os
import signal
import threading
import time
import weakref

import pytest
import torch
from helpers import random_packed
from torch._subclasses.fake_tensor import FakeTensorMode

from arbllm_kernels import cpu, direct, native, ops
from arbllm_kernels.errors import InputError
from arbllm_kernels.linear import ARBLinear, linear


def op(layer: ARBLinear, x: torch.Tensor) -> torch.Tensor:
    return ops.LINEAR(x, *ops.packed_args(layer.packed))


def takes(layer: ARBLinear, x: torch.Tensor) -> bool:
    """Whether the short way is taken."""
    return direct.product(x, ops.packed_args(layer.packed)) is not None


def kept(layer: ARBLinear) -> object:
    """The native weight of the layer's products."""
    return layer.order.__dict__.get(cpu.KEPT)


@pytest.mark.parametrize("activations", native.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_op(activations: str, dtype: torch.dtype) -> None:
    pw = random_packed(33, 200, 64)
    layer = ARBLinear(pw)
    with native.forced_activations(activations):
        for shape in ((200,), (1, 200), (3, 1, 200), (0, 200), (40, 200), (2, 20, 200)):  # the last are dequantized
            x = torch.randn(shape).to(dtype)
            assert takes(layer, x)
            y = layer(x)
            assert y.dtype == dtype and torch.equal(y, op(layer, x)) and torch.equal(linear(x, pw), y)
    assert kept(layer) is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_other_ways_take_the_op() -> None:
    x, layer = torch.randn(2, 200), ARBLinear(random_packed(33, 200, 64))
    assert takes(layer, x)
    assert not takes(layer, x.t().contiguous().t())
    assert not takes(layer, torch.randn(2, 200, requires_grad=True))
    with torch.no_grad():
        assert takes(layer, torch.randn(2, 200, requires_grad=True))
    assert not takes(layer, torch.nn.Parameter(x))
    assert not takes(layer, x.double()) and not takes(layer, x[:, 1:].contiguous()) and not takes(layer, torch.ones(()))
    assert not takes(layer, torch.empty(2, 200, device="meta"))
    assert not takes(layer, torch._neg_view(x)) and torch.equal(layer(torch._neg_view(x)), layer(-x))
    zeros = torch._efficientzerotensor((2, 200))
    assert not takes(layer, zeros)
    seen: list[bool] = []
    torch.func.vmap(lambda row: seen.append(takes(layer, row)) or row)(x)
    with torch.autograd.forward_ad.dual_level():
        seen.append(takes(layer, x))
    assert seen == [False, False]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), op(layer, x))
    traced = torch.jit.trace(lambda t: layer(t), x)
    assert "arb::linear" in str(traced.graph)


@pytest.mark.parametrize("layout", ["to_mkldnn", "to_sparse"])
def test_other_layouts_are_refused(layout: str) -> None:
    layer = ARBLinear(random_packed(8, 130, 64))
    with pytest.raises(InputError, match="dense tensor"):
        layer(getattr(torch.randn(2, 130), layout)())


def test_weights_without_memory_take_the_op() -> None:
    layer, x = ARBLinear(random_packed(8, 130, 64)), torch.randn(2, 130)
    args, mode = ops.packed_args(layer.packed), FakeTensorMode()
    fake = tuple(mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in args)
    assert direct.product(x, fake) is None


def test_changed_weights_are_noticed() -> None:
    layer, x = ARBLinear(random_packed(8, 130, 64)), torch.randn(1, 130)
    before = layer(x)
    layer.row_scale.mul_(2)  # in place
    torch.testing.assert_close(layer(x), 2 * before)
    other = ARBLinear(random_packed(8, 130, 64, salient=0.3, seed=1))
    layer.sign.data = other.sign.clone()  # same tensor, another address
    assert torch.equal(layer(x), op(layer, x)) and not torch.equal(layer(x), 2 * before)
    same = ARBLinear(random_packed(8, 130, 64, salient=0.3, seed=2))
    same(x)
    same.load_state_dict(other.state_dict())
    assert torch.equal(same(x), other(x))
    native_isa = native.active_isa()
    with native.forced_isa("scalar"):
        torch.testing.assert_close(same(x), other(x))
    assert native.active_isa() == native_isa


def test_a_part_elsewhere_is_refused() -> None:
    for name in ("group", "second", "row_scale", "col_scale", "order", "counts"):
        layer = ARBLinear(random_packed(8, 130, 64))
        layer._buffers[name] = getattr(layer, name).to("meta")
        with pytest.raises(InputError, match=f"packed weight: {name} is .* on meta"):
            layer(torch.randn(1, 130))


def test_layers_are_copied_and_pickled_without_their_native_weight() -> None:
    layer, x = ARBLinear(random_packed(8, 130, 64)), torch.randn(1, 130)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    assert not kept(twin) and torch.equal(twin(x), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)


def test_every_way_shares_one_native_weight() -> None:
    pw, x = random_packed(33, 300, 128), torch.randn(2, 300)
    layer = ARBLinear(pw)
    y = op(layer, x)  # the operator makes it, too
    bound = kept(layer)
    assert bound is not None
    assert torch.equal(layer(x), y) and torch.equal(linear(x, layer.packed), y)
    assert torch.equal(layer(x.clone().requires_grad_()), y)
    assert torch.equal(layer(x.t().contiguous().t()), y)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), y)
    assert torch.equal(torch.func.vmap(lambda row: layer(row))(x), y)
    assert kept(layer) is bound
    native.set_repack(False)
    try:
        assert not torch.equal(layer(x), y) and kept(layer) is not bound  # by blending: the copy is gone
    finally:
        native.set_repack(None)


def test_native_weights_go_with_their_layers() -> None:
    layer = ARBLinear(random_packed(8, 130, 64))
    layer(torch.randn(1, 130))
    there = weakref.ref(kept(layer))
    assert there() is not None
    del layer
    gc.collect()
    assert there() is None


def test_what_is_kept_follows_sizes_and_memory() -> None:
    layer, x = ARBLinear(random_packed(8, 130, 64)), torch.randn(1, 130)
    y, bound = layer(x), kept(layer)
    assert torch.equal(torch.func.functional_call(layer, layer.state_dict(), x), y) and kept(layer) is bound
    *parts, sizes = ops.packed_args(layer.packed)
    for changed in (1, 2, 6):  # cols, block size, exponent
        other = [size + (i == changed) for i, size in enumerate(sizes)]
        if changed == 6:
            torch.testing.assert_close(ops.LINEAR(x, *parts, other), 2 * y)
        else:
            with pytest.raises(InputError):
                ops.LINEAR(x, *parts, other)
    assert torch.equal(layer(x), y)


def test_tensors_are_saved_as_plain_ones_after_a_product() -> None:
    layer = ARBLinear(random_packed(8, 130, 64))
    y = layer(x := torch.randn(1, 130))
    file = io.BytesIO()
    torch.save(dict(layer.named_buffers()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for name, buffer in saved.items():
        layer._buffers[name] = buffer
    assert not kept(layer) and torch.equal(layer(x), y)


def test_products_beside_writes() -> None:
    """Each product is of the content before or after some write; none is an internal answer."""
    layer, x = ARBLinear(random_packed(8, 130, 64)), torch.randn(1, 130)
    y, done = layer(x), threading.Event()

    def write() -> None:
        while not done.is_set():
            layer.row_scale.mul_(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert torch.equal(layer(x), y) and torch.equal(op(layer, x), y)
    finally:
        done.set()
        writer.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_copies_are_made() -> None:
    pw = random_packed(2048, 2048)
    layers = [ARBLinear(pw) for _ in range(16)]  # a copy takes milliseconds
    x, torch_threads, children = torch.randn(1, 2048), torch.get_num_threads(), []
    torch.set_num_threads(1)
    maker = threading.Thread(target=lambda: [layer(x) for layer in layers[1:]])
    maker.start()
    while maker.is_alive() and len(children) < 20:
        child = os.fork()
        if child == 0:
            os._exit(0 if bool(layers[0](x).isfinite().all()) else 1)
        children.append(child)
    maker.join()
    torch.set_num_threads(torch_threads)
    end = time.monotonic() + 20
    codes = []
    for child in children:
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.01)
        if not done[0]:  # it waits for a copy that its parent was making
            os.kill(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
        codes.append(os.waitstatus_to_exitcode(done[1]))
    assert len(codes) > 1 and not any(codes), codes
