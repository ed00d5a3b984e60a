"""Products by line (csrc/cpu/line.h) in one, two and three digits: against float64 and a plain version of the
rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from cpu_products import WAYS, check_bits, check_rows, check_rows_that_are_not_finite, run, same_bits
from helpers import random_packed

from arbllm_kernels import cpu, native, ops
from arbllm_kernels.packed import PackedWeight

# One narrow block; one block of odd width; blocks of 512 and more, the last short; a line that ends in every place.
SHAPES = [(1, 1, 64), (5, 7, 128), (3, 300, 300), (4, 576, 2048), (3, 1300, 520), (2, 2100, 1024), (1, 4097, 2048)]
ZONES = [(1, 1), (2, 1), (1, 2), (2, 2)]  # salient groups, salient order


def weights(n: int, m: int, k: int) -> list[PackedWeight]:
    found = []
    for salient_groups, order in ZONES:
        for salient, joined in itertools.product((None, 0.0, 1.0), (False, True)[:order]):
            pw = random_packed(
                n, m, k, salient_groups=salient_groups, salient_order=order, exponent=-3, shared=True, coded=True,
                joined=joined, ordered=True, salient=salient,
            )  # fmt: skip
            pw.row_scale[: n // 2, :, :] = 0  # rows of nothing
            found.append(pw)
    return found


def run_exact(pw: PackedWeight, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
    assert cpu.view(ops.packed_args(pw)).covers_line
    return run(pw, x, False, threads)


def reference(pw: PackedWeight, x: torch.Tensor, digits: int) -> torch.Tensor:
    """The product in one or two digits in float64, exact but for the last rounding: [batch, n]."""
    lay, order, whole = pw.layout, pw.order.long(), torch.tensor(127.0 if digits == 1 else 127.0 * 257.0)
    sign, y = pw._sign_bits.double() * 2 - 1, torch.zeros(x.shape[0], lay.rows, dtype=torch.float64)
    second = pw._second_bits.double() * 2 - 1 if lay.salient_order == 2 else torch.zeros_like(sign)
    assert pw.col_scale is not None and pw.row_base is not None
    for b, count in enumerate(pw.salient_counts.tolist()):
        cols = slice(b * lay.block_size, min((b + 1) * lay.block_size, lay.cols))
        before = int(pw.salient_counts[:b].sum())
        values = x[:, order[cols]] * pw.col_scale.float()[0, cols]
        most = values.abs().amax(1, keepdim=True)
        q = (values * (whole / most)).round().double().nan_to_num(0.0)
        codes, group = pw.row_scale[:, b].double(), pw._group_index[:, cols].long()
        salient = group[:, :count] * (lay.salient_groups > 1) * lay.salient_order
        levels = sign[:, cols] * codes.gather(1, lay.salient_scales + group)
        levels[:, :count] = sign[:, cols][:, :count] * codes.gather(1, salient)
        if lay.salient_order == 2:
            levels[:, :count] += second[:, before : before + count] * codes.gather(1, salient + 1)
        y += (q @ levels.T) * (most / whole).double()
    return y * (pw.row_base.float() * 2.0**lay.exponent).double()


def bound(pw: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    """What the definition allows: half a unit per column and block, the units at most 2^-21 of the largest x c."""
    scaled = (x.double()[:, pw.order.long()] * (1 if pw.col_scale is None else pw.col_scale[0].double())).abs()
    k, size = pw.layout.block_size, torch.zeros(x.shape[0], pw.layout.rows, dtype=torch.float64)
    codes, order = pw.row_scale.double(), pw.layout.salient_order
    for b in range(pw.layout.blocks):
        here = scaled[:, b * k : (b + 1) * k]
        most = codes[:, b].amax(-1) * order * float(2.0**pw.layout.exponent)
        assert pw.row_base is not None
        size += here.amax(1, keepdim=True) * here.shape[1] * (most * pw.row_base.double())
    return size * 2.0**-22


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_products_equal_their_definition(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        x = torch.randn(3, m)
        exact = x.double() @ pw.dequantize().double().T
        # One rounding of x c to float32, one of y.
        rounding = 2.0**-23 * (x.double().abs() @ pw.dequantize().double().abs().T)
        assert bool(((run_exact(pw, x).double() - exact).abs() <= bound(pw, x) + rounding + 1e-30).all()), pw.layout
        int8, expected = run(pw, x, True).double(), reference(pw, x, 1)
        assert bool(((int8 - expected).abs() <= 2.0**-22 * (expected.abs() + rounding * 2.0**23)).all()), pw.layout
        half = x.bfloat16()
        two, expected = run(pw, half, False).double(), reference(pw, half.float(), 2)
        steps = 2.0**-8 * expected.abs()
        assert bool(((two - expected).abs() <= steps * 1.001 + rounding).all()), pw.layout


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_every_instruction_set_gives_the_same_bits(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        check_bits(pw, 15)  # tiles of 8, 4, 2 and 1


@pytest.fixture(params=[32, 48])
def l1_kib(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes of the first-level cache: with the smaller one rows of the weight go side by side (avx512vbmi)."""
    monkeypatch.setenv("ARBLLM_L1_KIB", str(request.param))


@pytest.mark.usefixtures("l1_kib")
@pytest.mark.parametrize("salient_groups", [1, 2])
def test_joined_planes_where_some_blocks_cannot_be_joined(isa: str, salient_groups: int) -> None:
    pw = random_packed(80, 1400, 512, salient_groups=salient_groups, shared=True, coded=True, joined=True, salient=0.3)
    pw.row_scale[7, 1, :2], pw.row_scale[33] = 64, 127  # 128 and 254 in both planes together
    pw.row_scale[40, 0, -4:-2] = 64  # the last salient group, and the first row of two side by side
    x = torch.randn(3, 1400)
    exact = x.double() @ pw.dequantize().double().T
    rounding = 2.0**-23 * (x.double().abs() @ pw.dequantize().double().abs().T)
    for dtype, int8 in WAYS:
        got = run(pw, x.to(dtype), int8)
        with native.forced_isa("scalar"):
            assert same_bits(got, run(pw, x.to(dtype), int8))
    assert bool(((run_exact(pw, x).double() - exact).abs() <= bound(pw, x) + rounding).all())


@pytest.mark.usefixtures("l1_kib")
@pytest.mark.parametrize("m,k", [(1400, 512), (4500, 2048), (8200, 4096), (11008, 2048)])
def test_any_number_of_rows(isa: str, m: int, k: int) -> None:
    """What is read past the end of a row may not be past the end of a buffer."""
    for n in range(5, 14):
        for salient in (None, 0.3, 0.9):
            check_bits(random_packed(n, m, k, shared=True, coded=True, joined=True, salient=salient, seed=n), 1)


@pytest.mark.usefixtures("l1_kib")
@pytest.mark.parametrize("m,k", [(600, 600), (1400, 512), (9000, 4096)])
def test_rows_side_by_side(isa: str, m: int, k: int) -> None:
    for groups, order in ZONES:
        for salient, joined in itertools.product((0.0, 0.3, 1.0), (False, True)[:order]):
            pw = random_packed(
                70, m, k, salient_groups=groups, salient_order=order, shared=True, coded=True, joined=joined,
                salient=salient,
            )  # fmt: skip
            check_bits(pw, 1)


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 65])
def test_rows_do_not_depend_on_batch_or_threads(isa: str, batch: int) -> None:
    check_rows(random_packed(701, 1400, 2048, shared=True, coded=True), batch, 8)


@pytest.mark.parametrize("m", [7000, 9000])
def test_the_size_of_the_cache_changes_no_result(isa: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pw = random_packed(37, m, 2048, shared=True, coded=True, joined=True, salient=0.3)
    x = {way: torch.randn(2, m, dtype=way[0]) for way in WAYS}
    found = []
    for kib in (1, 24, 10**6):  # a block at a time; several; all of 7,000 columns
        monkeypatch.setenv("ARBLLM_L1_KIB", str(kib))
        found.append([run(pw, x[way][:batch], way[1]) for way, batch in itertools.product(WAYS, (1, 2))])
    assert all(same_bits(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e38])
def test_huge_and_tiny_x(isa: str, size: float) -> None:
    pw = random_packed(8, 600, 512, shared=True, coded=True)
    x = torch.rand(1, 600) * size
    exact = x.double() @ pw.dequantize().double().T
    y = run_exact(pw, x).double()
    finite = exact.abs() < 3e38
    assert bool((y.isinf() | finite).all())
    subnormal = 2.0**-149 * 600 * float(pw.dequantize().abs().max()) * 2  # the products x c have no finer steps
    assert bool(((y - exact).abs() <= bound(pw, x) + 2.0**-23 * exact.abs() + subnormal)[finite].all())
    assert bool((run_exact(pw, torch.zeros(1, 600)) == 0).all())


def test_a_row_that_is_not_finite_leaves_the_others_alone(isa: str) -> None:
    check_rows_that_are_not_finite(random_packed(8, 600, 512, shared=True, coded=True, salient=0.2))
