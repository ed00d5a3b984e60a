"""Activations in 8 bits: every instruction set against a plain version of csrc/cpu/int8.h, and the error made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import random_packed

from arbllm_kernels import native, ops
from arbllm_kernels.errors import InputError
from arbllm_kernels.linear import linear
from arbllm_kernels.packed import PackedWeight

SHAPES = [(1, 1, 64), (1, 63, 128), (5, 64, 64), (3, 65, 128), (7, 576, 128), (4, 700, 256), (3, 300, 300)]
ZONES = [(1, 1), (2, 1), (2, 2)]


def run_int8(pw: PackedWeight, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
    y = torch.full((x.shape[0], pw.layout.rows), float("nan"))
    args = ops.packed_args(pw)
    weight = ops.native_weight(args)
    assert weight.covers_int8
    ran = weight.gemm(x.data_ptr(), x.shape[0], y.data_ptr(), threads, True)
    assert ran == native.active_isa()
    return y


def rounded(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q float [...] in -127..127 and its unit, as csrc/cpu/int8.inc rounds: float32 operations in its order."""
    most = values.abs().max()
    if most == 0:
        return torch.zeros_like(values), most
    lift = 2.0**64 if most < 2.0**-60 else 1.0
    inverse = torch.tensor(127.0) / (most * lift)
    return (values * lift * inverse).round(), most * lift / 127.0 / lift


def reference(pw: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    """The product of int8.h in float64, exact but for the last rounding: [batch, n]."""
    lay, order = pw.layout, pw.order.long()
    counts = pw.salient_counts.tolist()
    sign, group = pw._sign_bits.double() * 2 - 1, pw._group_index
    second = pw._second_bits.double() * 2 - 1 if lay.salient_order == 2 else None
    factor = torch.tensor(2.0**lay.exponent)
    if pw.row_base is not None:
        codes, units = pw.row_scale.double(), (pw.row_base.float() * factor).double()
    else:
        rows = [rounded(r) for r in pw.row_scale.float()]
        codes = torch.stack([c for c, _ in rows]).double()
        units = torch.stack([(u * factor) for _, u in rows]).double()
    y = torch.zeros(x.shape[0], lay.rows, dtype=torch.float64)
    seen = 0
    for b, count in enumerate(counts):
        cols = slice(b * lay.block_size, min((b + 1) * lay.block_size, lay.cols))
        width = cols.stop - cols.start
        salient = torch.arange(width) < count
        zone = group[:, cols] * (~salient | (lay.salient_groups > 1))
        own = x[:, order[cols]]

        def scales(part: torch.Tensor | None, where: slice, groups: int, first: int, last: int) -> torch.Tensor:
            if part is None:
                return torch.ones(2, last - first)
            return part.float()[:, where][[0, groups - 1 if part.shape[0] > 1 else 0]]

        first = scales(pw.col_scale, cols, lay.groups, 0, width)
        first[1, :count] = first[0, :count] if lay.salient_groups == 1 else first[1, :count]
        planes = [own.unsqueeze(1) * first]
        if second is not None:
            if pw.col_scale2 is not None:
                other = pw.col_scale2.float()[:, seen : seen + count][[0, lay.salient_groups - 1]]
            else:
                other = first[:, :count] if pw.col_scale is not None else torch.ones(2, count)
            planes.append(own[:, None, :count] * other)
        for t in range(x.shape[0]):
            q, unit = rounded(torch.cat([p[t].reshape(-1) for p in planes]))
            q1 = q[: 2 * width].view(2, width).double()
            code = torch.where(salient, zone * lay.salient_order, lay.salient_scales + group[:, cols])
            total = (codes[:, b].gather(1, code) * sign[:, cols] * q1.gather(0, zone)).sum(1)
            if second is not None:
                q2 = q[2 * width :].view(2, count).double()
                code2 = zone[:, :count] * 2 + 1
                bits = second[:, seen : seen + count]
                total += (codes[:, b].gather(1, code2) * bits * q2.gather(0, zone[:, :count])).sum(1)
            y[t] += total * unit.double()
        seen += count
    return y * units


def weights(n: int, m: int, k: int) -> list[PackedWeight]:
    found = []
    for groups, salient_groups in ZONES:
        for order in (1, 2):
            for options in ({}, {"col_scale": False}, {"shared": True, "coded": True, "ordered": True}):
                kept: dict[str, Any] = options
                found.append(
                    random_packed(
                        n, m, k, groups=groups, salient_groups=salient_groups, salient_order=order, exponent=-3, **kept
                    )
                )
    return found


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_int8_equals_its_definition(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        x = torch.randn(3, m)
        got, expected = run_int8(pw, x), reference(pw, x)
        # Each of 16 lanes is a float32 sum over the blocks, of terms at most 5 |x|.
        bound = (pw.layout.blocks + 6) * 2.0**-24 * 6.0 * x.double().abs().sum(1, keepdim=True)
        assert bool(((got.double() - expected).abs() <= bound).all()), pw.layout


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_every_instruction_set_gives_the_same_bits(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        if pw.row_base is None:
            pw.row_scale[::2].neg_()  # rows with and without negative scales
        x = torch.randn(5, m)
        got = run_int8(pw, x)
        with native.forced_isa("scalar"):
            expected = run_int8(pw, x)
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), pw.layout


@pytest.mark.parametrize("batch", [0, 1, 2, 4, 5, 9])
def test_rows_do_not_depend_on_batch_or_threads(isa: str, batch: int) -> None:
    pw = random_packed(1501, 1400, 128, shared=True, coded=True)
    x = torch.randn(batch, 1400)
    together = run_int8(pw, x, threads=3)
    for i in range(batch):
        assert torch.equal(together[i : i + 1], run_int8(pw, x[i : i + 1]))


@pytest.mark.parametrize("salient", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("new", [False, True])
def test_error_of_random_weights_is_below_one_percent(isa: str, salient: float, new: bool) -> None:
    for k in (64, 128, 256):
        pw = random_packed(64, 1024, k, salient=salient, shared=new, coded=new)
        x = torch.randn(4, 1024)
        exact = x.double() @ pw.dequantize().double().T
        error = (run_int8(pw, x).double() - exact).norm() / exact.norm()
        assert 1e-4 < float(error) < 0.012, (k, float(error))


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30])
def test_huge_and_tiny_x(isa: str, size: float) -> None:
    pw = random_packed(8, 300, 128, shared=True)
    x = torch.randn(1, 300) * size
    exact = x.double() @ pw.dequantize().double().T
    error = (run_int8(pw, x).double() - exact).norm() / exact.norm()
    assert float(error) < 0.012


def test_zero_and_non_finite_x(isa: str) -> None:
    pw = random_packed(8, 300, 128)
    x = torch.zeros(3, 300)
    x[1, 7], x[2, 299] = float("inf"), float("nan")
    y = run_int8(pw, x)
    assert bool((y[0] == 0).all()) and bool(y[1:].isnan().all())
    assert bool((run_int8(random_packed(3, 64, 64, zero=True), torch.randn(1, 64)) == 0).all())


def test_int8_is_opt_in_and_says_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    pw, x = random_packed(8, 300, 128), torch.randn(2, 300)
    exact = linear(x, pw)
    with native.forced_activations("int8"):
        assert torch.equal(linear(x, pw), run_int8(pw, x)) and not torch.equal(linear(x, pw), exact)
        many = x.repeat(ops.DENSE_BATCH, 1)
        torch.testing.assert_close(linear(many, pw)[:2], exact)  # long batches are exact
        for options in ({"mean": True}, {"groups": 4}, {"block_size": 100}):
            other: PackedWeight = random_packed(8, 300, **options)
            with pytest.warns(UserWarning, match="has a layout without an int8 kernel"):
                y = linear(x, other)
            with native.forced_activations("exact"):
                assert torch.equal(y, linear(x, other))
    assert torch.equal(linear(x, pw), exact)
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
