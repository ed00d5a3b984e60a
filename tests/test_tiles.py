"""Products by repacked weights (csrc/cpu/tiles.h): against float64, a plain version of their rounding, each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpu_products import WAYS, check_bits, check_rows, check_rows_that_are_not_finite, run
from helpers import random_packed

from arbllm_kernels import cpu, native, ops
from arbllm_kernels.linear import ARBLinear, linear
from arbllm_kernels.packed import PackedWeight

# Tiles that are not full; parts and steps that are not; blocks of every kind, narrow ones and one of all columns.
SHAPES = [(1, 1, 64), (31, 63, 128), (33, 65, 64), (3, 129, 128), (70, 576, 128), (4, 700, 256), (3, 300, 300)]
SHAPES += [(17, 640, 100), (5, 90, 8), (3, 20, 1), (40, 2100, 1024), (2, 5000, 5000)]
ZONES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4)]  # groups, salient groups
OPTIONS: list[dict[str, Any]] = [
    {}, {"salient": 1.0}, {"salient": 0.0}, {"salient": 0.5}, {"mean": True, "salient": 0.1},
    {"col_scale": False, "dtype": torch.float32}, {"shared": True, "coded": True, "ordered": True},
]  # fmt: skip
PART = 128


def weights(n: int, m: int, k: int) -> Iterator[PackedWeight]:
    for i, ((groups, salient_groups), order, options) in enumerate(itertools.product(ZONES, (1, 2), OPTIONS)):
        if i % 5 != n % 5:  # others for the next shape
            continue
        pw = random_packed(
            n, m, k, groups=groups, salient_groups=salient_groups, salient_order=order, exponent=-3, **options
        )
        if not cpu.view(ops.packed_args(pw)).gains_by_copy:
            continue
        if pw.row_base is None:
            pw.row_scale[::2].neg_()
        pw.row_scale[n // 2 : n // 2 + 1] = 0
        yield pw


def rounded(values: torch.Tensor, codes: int, digits: int) -> torch.Tensor:
    """Values [columns of a part] as whole numbers of their unit, times it, float64; operations as in the kernels."""
    padded = torch.nn.functional.pad(values.abs(), (0, -len(values) % (4 * codes))).view(-1, codes, 4)
    most = sum(padded.unbind(1)[1:], padded[:, 0]).max().clamp_min(2.0**-100)
    whole = torch.tensor((127.0 if digits == 1 else 127.0 * 257.0) - codes // 2)
    return (values * (whole / most)).round().double() * (most / whole).double()


def reference(pw: PackedWeight, x: torch.Tensor, digits: int) -> torch.Tensor:
    """The product in one or two digits in float64, exact but for the last rounding: [batch, n]."""
    lay, order, codes = pw.layout, pw.order.long(), 4 // pw.layout.groups
    sign, group = pw._sign_bits.double() * 2 - 1, pw._group_index
    second = pw._second_bits.double() * 2 - 1 if lay.salient_order == 2 else None
    y, seen = torch.zeros(x.shape[0], lay.rows, dtype=torch.float64), 0
    unit = 2.0 ** x.abs().amax(1).log2().floor()  # what x is divided by moves no digit
    for b, count in enumerate(pw.salient_counts.tolist()):
        start, stop = b * lay.block_size, min((b + 1) * lay.block_size, lay.cols)
        for first in range(start, stop, PART):
            cols = slice(first, min(first + PART, stop))
            salient = torch.arange(cols.start, cols.stop) < start + count
            own, here = x[:, order[cols]] / unit[:, None], int(salient.sum())
            for is_salient, groups in ((False, lay.groups), (True, lay.salient_groups)):
                kept = salient if is_salient else ~salient
                for g in range(groups):
                    member = kept & ((group[:, cols] == g) if groups > 1 else torch.tensor(True))
                    scale = None if pw.col_scale is None else pw.col_scale.float()[min(g, len(pw.col_scale) - 1), cols]
                    kind = g * lay.salient_order if is_salient else lay.salient_scales + g
                    terms = [(scale, sign[:, cols], pw.row_scale[:, b, kind])]
                    if is_salient and second is not None:
                        at = slice(seen, seen + here)
                        signs, scale2 = torch.zeros_like(sign[:, cols]), scale
                        signs[:, :here] = second[:, at]
                        if pw.col_scale2 is not None:
                            scale2 = torch.zeros(cols.stop - cols.start)
                            scale2[:here] = pw.col_scale2.float()[g, at]
                        terms.append((scale2, signs, pw.row_scale[:, b, kind + 1]))
                    if pw.mean is not None:
                        mean = pw.mean[:, b, g if is_salient else lay.salient_groups + g]
                        terms.append((None, torch.ones_like(sign[:, cols]), mean))
                    for factor, signs, level in terms:
                        for t in range(len(x)):
                            values = (own[t] if factor is None else own[t] * factor) * kept
                            q = rounded(values, codes, digits)
                            y[t] += level.double() * ((member * signs) @ q) * unit[t].double()
            seen += here
    base = torch.ones(lay.rows) if pw.row_base is None else pw.row_base.float()
    return y * (base * 2.0**lay.exponent).double()


def most_weight(pw: PackedWeight) -> torch.Tensor:
    """What the parts of a weight of each row may add up to: [n]."""
    columns = [part.abs().max() for part in (pw.col_scale, pw.col_scale2) if part is not None and part.numel()]
    most = pw.row_scale.double().abs().amax((1, 2)) * pw.layout.salient_order
    most = most * float(max([1.0, *map(float, columns)]))
    if pw.mean is not None:
        most = most + 2 * pw.mean.double().abs().amax((1, 2))
    base = 1.0 if pw.row_base is None else pw.row_base.double()
    return most * base * 2.0**pw.layout.exponent


def bound(pw: PackedWeight, x: torch.Tensor, digits: bool) -> torch.Tensor:
    """Rounding of a sum of floats for every part and term, and of x to three digits: half of 2^-21 of the largest sum
    of up to four columns."""
    lay, size, parts = pw.layout, torch.zeros(x.shape[0], 1, dtype=torch.float64), 0
    own = x.double()[:, pw.order.long()].abs()
    for start in range(0, lay.cols, lay.block_size):
        for first in range(start, min(start + lay.block_size, lay.cols), PART):
            here = own[:, first : min(first + PART, start + lay.block_size)]
            size += here.amax(1, keepdim=True) * here.shape[1]
            parts += 1
    terms = parts * (lay.scales_per_block + (0 if pw.mean is None else lay.zones))
    return size * most_weight(pw) * ((terms + 8) * 2.0**-24 + (4 / lay.groups * 2.0**-22 if digits else 0.0)) + 1e-30


def check_definition(pw: PackedWeight, x: torch.Tensor) -> None:
    """Three digits against float64, one and two against `reference`."""
    dense = pw.dequantize().double().T
    off = (run(pw, x, False).double() - x.double() @ dense).abs()
    assert bool((off <= bound(pw, x, True)).all()), pw.layout
    off = (run(pw, x, True).double() - reference(pw, x, 1)).abs()
    assert bool((off <= bound(pw, x, False)).all()), pw.layout
    half = x.half()
    expected = reference(pw, half.float(), 2)
    off = (run(pw, half, False).double() - expected).abs()
    rounding = 2.0**-11 * expected.abs() + 2.0**-25
    assert bool((off <= bound(pw, half, False) + rounding).all()), pw.layout


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_products_equal_their_definition(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        check_definition(pw, torch.randn(2, m))


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_instruction_sets_give_the_same_bits(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        check_bits(pw, 3)


@pytest.mark.parametrize("batch", [0, 1, 2, 5, 19, 66])
def test_rows_do_not_depend_on_batch_or_threads(isa: str, batch: int) -> None:
    pw = random_packed(2101, 1400, 128)  # three panels, of which threads take pieces
    check_rows(pw, batch, 4 if batch < 66 else 13)


def test_a_row_that_is_not_finite_leaves_the_others_alone(isa: str) -> None:
    check_rows_that_are_not_finite(random_packed(8, 300, 128))
    assert bool((run(random_packed(3, 64, 64, zero=True), torch.randn(1, 64), True) == 0).all())


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_largest_sums(isa: str, groups: int, plus: bool, last: bool) -> None:
    """All signs and groups alike, and x that add up to the largest numbers in every byte."""
    pw = random_packed(2, 1024, groups=groups, salient_groups=groups, salient=0.3)
    pw.sign.fill_(-1 if plus else 0)
    pw.second.fill_(-1 if plus else 0)
    pw.group.fill_(-1 if last else 0)
    assert pw.col_scale is not None and pw.col_scale2 is not None
    pw.col_scale.fill_(1)
    pw.col_scale2.fill_(1)
    dense = pw.dequantize().double().T
    for value in (1.0, -1.0, 1 - 2.0**-23, 0.5):
        x = torch.full((1, 1024), value)
        for dtype, int8 in WAYS:
            own = x.to(dtype)
            exact = own.double() @ dense
            got = run(pw, own, int8).double()
            assert bool(((got - exact).abs() <= 0.01 * exact.abs().max()).all())
            with native.forced_isa("scalar"):
                assert torch.equal(got, run(pw, own, int8).double())


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e38])
def test_huge_and_tiny_x(isa: str, size: float) -> None:
    pw = random_packed(8, 300, 128, exponent=-6)
    x = torch.rand(1, 300) * size
    exact = x.double() @ pw.dequantize().double().T
    subnormal = 2.0**-149  # y has no finer steps
    assert bool(((run(pw, x, False).double() - exact).abs() <= bound(pw, x, True) + subnormal).all())
    assert bool((run(pw, x, True).double() - exact).norm() <= 0.02 * exact.norm() + 8 * subnormal)
    assert bool((run(pw, torch.zeros(1, 300), False) == 0).all())


@pytest.mark.parametrize("salient", [0.0, 0.4, 1.0])
def test_error_of_random_weights(isa: str, salient: float) -> None:
    """About one percent with one digit; with three what rounding to 22 bits leaves, 21 would be too few."""
    for k, shared in itertools.product((64, 128, 1024), (False, True)):
        pw = random_packed(64, 1024, k, salient=salient, shared=shared, coded=shared and k < 512)
        x = torch.randn(4, 1024)
        exact = x.double() @ pw.dequantize().double().T
        one, three = (float((run(pw, x, int8).double() - exact).norm() / exact.norm()) for int8 in (True, False))
        assert 1e-4 < one < 0.012 and three < 7e-7, (k, one, three)


def test_layers_follow_the_setting_and_their_tensors(isa: str) -> None:
    pw, x = random_packed(40, 300, 64), torch.randn(1, 300)
    layer = ARBLinear(pw)
    stored, copied = run(pw, x, False, 1, False), run(pw, x, False)
    assert not torch.equal(stored, copied)  # sums in another order
    torch.testing.assert_close(stored, copied, rtol=1e-4, atol=1e-3)
    with native.forced_repack(False):
        assert torch.equal(layer(x), stored)
    with native.forced_repack(True):
        assert torch.equal(layer(x), copied) and torch.equal(linear(x, pw), copied)
        layer.row_scale.mul_(2)  # in place: the copy is made again
        assert torch.equal(layer(x), run(pw, x, False)) and not torch.equal(layer(x), copied)
        other = ARBLinear(random_packed(40, 300, 64))
        other.sign.bitwise_not_()
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))
        layer.row_scale.data.mul_(2)  # torch does not count that
        layer.refresh()
        assert torch.equal(layer(x), run(layer.packed, x, False)) and not torch.equal(layer(x), other(x))
        layer.load_state_dict(other.state_dict())
        with torch.inference_mode():
            made = ARBLinear(random_packed(40, 300, 64))
        assert torch.equal(made(x), run(made.packed, x, False))
        many = x.repeat(cpu.dense_batches(cpu.view(ops.packed_args(pw)), True, torch.float32)[2], 1)
        torch.testing.assert_close(layer(many)[:1], other(x), rtol=1e-4, atol=1e-3)  # dequantized
        with native.forced_activations("int8"):
            assert torch.equal(linear(x, pw), run(pw, x, True))
    with native.forced_repack(False):
        assert torch.equal(layer(x), run(pw, x, False, 1, False))
