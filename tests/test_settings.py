"""What is set by functions or in the environment: activations in 8 bits, copies of weights."""

from __future__ import annotations

import pytest
import torch
from cpu_products import run
from helpers import random_packed

from arbllm_kernels import cpu, native, ops
from arbllm_kernels.errors import InputError
from arbllm_kernels.linear import linear


@pytest.mark.parametrize("layout", [{}, {"block_size": 512, "shared": True, "coded": True}], ids=["copy", "line"])
def test_int8_is_opt_in(layout: dict[str, int]) -> None:
    pw, x = random_packed(8, 300, **layout), torch.randn(2, 300)
    exact = linear(x, pw)
    with native.forced_activations("int8"):
        assert torch.equal(linear(x, pw), run(pw, x, True)) and not torch.equal(linear(x, pw), exact)
        many = x.repeat(cpu.dense_batches(cpu.view(ops.packed_args(pw)), True, torch.float32)[0], 1)
        torch.testing.assert_close(linear(many, pw)[:2], exact, rtol=1e-5, atol=1e-4)  # long batches are exact
    assert torch.equal(linear(x, pw), exact)


def test_int8_says_where_it_does_not_apply() -> None:
    pw, x = random_packed(8, 300), torch.randn(2, 300)
    with native.forced_repack(False):
        exact = linear(x, pw)
        with native.forced_activations("int8"), pytest.warns(UserWarning, match="has a kernel in its copy alone"):
            assert torch.equal(linear(x, pw), exact)


def test_the_setting_of_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="set_activations: activations 'int4'; must be one of exact, int8"):
        native.set_activations("int4")
    native.set_activations(None)
    monkeypatch.setenv("ARBLLM_ACTIVATIONS", "int8")
    assert native.activations() == "int8"
    native.set_activations(None)
    monkeypatch.setenv("ARBLLM_ACTIVATIONS", "fp8")
    with pytest.raises(InputError, match="ARBLLM_ACTIVATIONS: activations 'fp8'"):
        native.activations()
    monkeypatch.delenv("ARBLLM_ACTIVATIONS")
    assert native.activations() == "exact"


def test_the_setting_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    native.set_repack(None)
    monkeypatch.delenv("ARBLLM_REPACK", raising=False)
    assert native.repack() is True
    native.set_repack(None)
    monkeypatch.setenv("ARBLLM_REPACK", "0")
    assert native.repack() is False
    native.set_repack(None)
    monkeypatch.setenv("ARBLLM_REPACK", "yes")
    with pytest.raises(InputError, match="ARBLLM_REPACK: 'yes'; must be 0 or 1"):
        native.repack()
    monkeypatch.delenv("ARBLLM_REPACK")
    assert native.repack() is True
    for value in ("0", 1.0, 0):
        with pytest.raises(InputError, match=f"set_repack: {value!r}; must be True, False or None"):
            native.set_repack(value)  # type: ignore[arg-type]
