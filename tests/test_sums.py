"""Products by sums of units (csrc/cpu/sums.h) in one, two and three digits: against float64, a plain version, and each
other."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import element, native_weight, random_packed

from arbllm_kernels import cpu, native, ops
from arbllm_kernels.errors import InputError
from arbllm_kernels.linear import linear
from arbllm_kernels.packed import PackedWeight

# Blocks of 128 and multiples, whose units lie as the kernels want them, and others; short last blocks; several parts.
SHAPES = [(1, 1, 64), (1, 63, 128), (5, 65, 64), (3, 129, 128), (37, 576, 128), (4, 700, 256), (3, 300, 300)]
SHAPES += [(17, 2500, 128), (3, 640, 100)]
# Units of a block that share salient columns: 2, 3 and parts that begin within a block, 4, 16, more than 16, all.
WIDE = [
    (2, 137, 136),
    (5, 2600, 192),
    (3, 2700, 384),
    (5, 4500, 512),
    (3, 4500, 2048),
    (2, 5000, 2560),
    (3, 4300, 5000),
]
ZONES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4)]
# Of wide blocks and four groups: parts with one and with several slices of salient columns, means.
SOME: list[dict[str, Any]] = [{"salient": 0.05}, {"mean": True, "col_scale": False}]
OPTIONS: list[dict[str, Any]] = [
    {}, {"salient": 1.0}, {"salient": 0.0}, {"mean": True, "salient": 0.1},
    {"col_scale": False, "dtype": torch.float32}, {"shared": True, "coded": True, "ordered": True}, *SOME,
]  # fmt: skip
UNIT = 128


def weights(n: int, m: int, k: int) -> list[PackedWeight]:
    found = []
    for groups, salient_groups in ZONES:
        for order in (1, 2):
            for options in SOME if groups == 4 or (n, m, k) in WIDE else OPTIONS:
                pw = random_packed(
                    n, m, k, groups=groups, salient_groups=salient_groups, salient_order=order, exponent=-3, **options
                )
                if cpu.view(ops.packed_args(pw)).covers_line:
                    continue
                if pw.row_base is None:
                    pw.row_scale[::2].neg_()  # rows with and without negative scales
                pw.row_scale[n // 2 : n // 2 + 1] = 0  # a row of nothing but means
                found.append(pw)
    return found


# Dtype of x, and whether activations are in 8 bits: three digits, two, and one.
WAYS = ((torch.float32, False), (torch.bfloat16, False), (torch.float16, False), (torch.float32, True))


def run(pw: PackedWeight, x: torch.Tensor, int8: bool, threads: int = 1, repack: bool = False) -> torch.Tensor:
    """In the dtype of x."""
    y = torch.full((x.shape[0], pw.layout.rows), float("nan"), dtype=x.dtype)
    args = ops.packed_args(pw)
    weight, names = native_weight(args, repack), native.extension.Activations
    assert weight.covers_int8
    way, batch = names.int8 if int8 else names.exact, x.shape[0]
    assert weight.gemm(x.data_ptr(), element(x.dtype), batch, y.data_ptr(), threads, way) == native.active_isa()
    return y


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integers = torch.int32 if a.dtype is torch.float32 else torch.int16
    return a.dtype is b.dtype and torch.equal(a.view(integers), b.view(integers))


def rounded(values: torch.Tensor, whole: float, most: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """q float [...] in -whole..whole and its unit, float32 operations in the order of the kernels."""
    most = values.abs().amax() if most is None else most
    if most == 0:
        return torch.zeros_like(values), most
    return (values * (torch.tensor(whole) / most)).round().double(), (most / whole).double()


def pieces(start: int, stop: int, count: int, width: int, unit: int) -> list[tuple[bool, slice]]:
    """What is rounded together of the block from `start` to `stop`, `count` of it salient, whose first unit of `width`
    columns is number `unit`: whether it is salient, and its columns. Of every 16 units those of a block are dealt their
    salient columns in eights (csrc/cpu/sums.h)."""
    found, units = [], [*range(start, stop, width)]
    for n, first in enumerate(units):
        found.append((False, slice(max(first, start + count), min(first + width, stop))))
        if n > 0 and (unit + n) % 16 != 0:
            continue
        sharing = min(16 - (unit + n) % 16, len(units) - n)
        salient = min(max(start + count - first, 0), sharing * width)
        share = -(-salient // (sharing * 8)) * 8
        for at in range(first, first + salient, max(share, 1)):
            found.append((True, slice(at, min(at + share, first + salient))))
    return [(salient, cols) for salient, cols in found if cols.start < cols.stop]


def reference(
    pw: PackedWeight, x: torch.Tensor, width: int = UNIT, joint: bool = False, digits: int = 1
) -> torch.Tensor:
    """The product in one or two digits in float64, exact but for the last rounding: [batch, n].

    x is rounded for the `pieces` of a block and every kind of column apart; `joint`: for all kinds together,
    which csrc/cpu/line.h does, where all kinds have the same column scales.
    """
    lay, order, n = pw.layout, pw.order.long(), pw.layout.rows
    sign, group = pw._sign_bits.double() * 2 - 1, pw._group_index
    second = pw._second_bits.double() * 2 - 1 if lay.salient_order == 2 else None
    y, seen, unit = torch.zeros(x.shape[0], n, dtype=torch.float64), 0, 0
    whole = 127.0 if digits == 1 else 127.0 * 257.0

    def scaled(own: torch.Tensor, part: torch.Tensor | None, g: int, cols: slice) -> torch.Tensor:
        return own if part is None else own * part.float()[min(g, part.shape[0] - 1), cols]

    for b, count in enumerate(pw.salient_counts.tolist()):
        start, stop = b * lay.block_size, min((b + 1) * lay.block_size, lay.cols)
        units = [*range(start, stop, width)]
        largest = [
            scaled(x[:, order[u : min(u + width, stop)]], pw.col_scale, 0, slice(u, min(u + width, stop))).abs().amax(1)
            for u in units
        ]
        for salient, cols in sorted(pieces(start, stop, count, width, unit), key=lambda piece: piece[1].start):
            everything = largest[(cols.start - start) // width]
            groups = lay.salient_groups if salient else lay.groups
            own, zone = x[:, order[cols]], group[:, cols] * int(groups > 1)
            for g in range(groups):
                here = zone == g
                terms = [(scaled(own, pw.col_scale, g, cols), sign[:, cols])]
                kinds = [g * lay.salient_order if salient else lay.salient_scales + g]
                if salient and second is not None:
                    at = slice(seen, seen + cols.stop - cols.start)
                    own2 = pw.col_scale if pw.col_scale2 is None else pw.col_scale2
                    terms.append((scaled(own, own2, g, cols if pw.col_scale2 is None else at), second[:, at]))
                    kinds.append(kinds[0] + 1)
                levels = [pw.row_scale[:, b, kind].double() for kind in kinds]
                if pw.mean is not None:
                    terms.append((own, torch.ones_like(sign[:, cols])))
                    levels.append(pw.mean[:, b, g if salient else lay.salient_groups + g].double())
                for (values, signs), level in zip(terms, levels, strict=True):
                    for t in range(x.shape[0]):
                        q, step = rounded(values[t], whole, everything[t] if joint else None)
                        y[t] += level * ((here * signs) @ q.double()) * step
            if salient:
                seen += cols.stop - cols.start
        unit += len(units)
    base = torch.ones(n) if pw.row_base is None else pw.row_base.float()
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
    """Rounding of sums of floats, and of x to three digits: half of 2^-21 of the largest of a unit."""
    k, size = pw.layout.block_size, torch.zeros(x.shape[0], 1, dtype=torch.float64)
    own = x.double()[:, pw.order.long()].abs()
    units = 0
    for start in range(0, pw.layout.cols, k):
        for first in range(start, min(start + k, pw.layout.cols), UNIT):
            here = own[:, first : min(first + UNIT, start + k)]
            size += here.amax(1, keepdim=True) * here.shape[1]
            units += 1
    rounding = (10 * (units / 16 + 1) + 8) * 2.0**-24
    return size * most_weight(pw) * (rounding + (2.0**-21 if digits else 0.0)) + 1e-30


def check_definition(pw: PackedWeight, x: torch.Tensor, repack: bool, reference: Any, bound: Any) -> None:
    """Three digits against float64, one and two against `reference`, as far as `bound` allows."""
    dense = pw.dequantize().double().T
    off = (run(pw, x, False, repack=repack).double() - x.double() @ dense).abs()
    assert bool((off <= bound(pw, x, True)).all()), pw.layout
    off = (run(pw, x, True, repack=repack).double() - reference(pw, x, digits=1)).abs()
    assert bool((off <= bound(pw, x, False)).all()), pw.layout
    half = x.half()
    expected = reference(pw, half.float(), digits=2)
    off = (run(pw, half, False, repack=repack).double() - expected).abs()
    rounding = 2.0**-11 * expected.abs() + 2.0**-25
    assert bool((off <= bound(pw, half, False) + rounding).all()), pw.layout


def check_bits(pw: PackedWeight, batch: int, repack: bool) -> None:
    """Against the scalar code."""
    for dtype, int8 in WAYS:
        x = torch.randn(batch, pw.layout.cols, dtype=dtype)
        got = run(pw, x, int8, repack=repack)
        with native.forced_isa("scalar"):
            assert same_bits(got, run(pw, x, int8, repack=repack)), (dtype, int8, pw.layout)


@pytest.mark.parametrize("n,m,k", SHAPES + WIDE)
def test_both_ways_equal_their_definition(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        check_definition(pw, torch.randn(3, m), False, reference, bound)


@pytest.mark.parametrize("n,m,k", SHAPES + WIDE)
def test_every_instruction_set_gives_the_same_bits(isa: str, n: int, m: int, k: int) -> None:
    for pw in weights(n, m, k):
        check_bits(pw, 5, False)


@pytest.mark.parametrize("repack", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2, 5, 19, 66])
def test_rows_do_not_depend_on_batch_or_threads(isa: str, batch: int, repack: bool) -> None:
    pw = random_packed(2101 if repack else 701, 1400, 128)  # repacked: three panels, of which threads take pieces
    for dtype, int8 in WAYS:
        x = torch.randn(batch, 1400, dtype=dtype)
        together = run(pw, x, int8, 3, repack)
        for i in range(0, batch, 4 if batch < 66 or not repack else 13):
            assert torch.equal(together[i : i + 1], run(pw, x[i : i + 1], int8, 1, repack))


def test_a_long_x_meets_panels_of_rows(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARBLLM_L1_KIB", "48")
    pw = random_packed(37, 20000, 128, salient=0.1)
    for batch, (dtype, int8) in itertools.product((1, 2), WAYS):
        x = torch.randn(batch, 20000, dtype=dtype)
        got = run(pw, x, int8, threads=2)
        with native.forced_isa("scalar"):
            assert same_bits(got, run(pw, x, int8))


@pytest.mark.parametrize("layout", [{}, {"block_size": 2048, "shared": True, "coded": True, "joined": True}])
def test_the_size_of_the_cache_changes_no_result(
    isa: str, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = random_packed(37, 9000, salient=0.3, **layout)
    x = {way: torch.randn(2, 9000, dtype=way[0]) for way in WAYS}
    found = []
    for kib in (1, 24, 10**6):  # one part or block at a time; several; all
        monkeypatch.setenv("ARBLLM_L1_KIB", str(kib))
        pw = PackedWeight(layout=made.layout, **{name: t.clone() for name, t in made.tensors().items()})
        found.append([run(pw, x[way][:batch], way[1]) for way, batch in itertools.product(WAYS, (1, 2))])
    assert all(same_bits(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_the_largest_sums(isa: str, plus: bool, last: bool) -> None:
    """All signs and groups alike, and digits of -128 and 127: what sums of 16 bits must hold."""
    pw = random_packed(2, 4096, salient=0.3)
    pw.sign.fill_(-1 if plus else 0)
    pw.second.fill_(-1 if plus else 0)
    pw.group.fill_(-1 if last else 0)
    assert pw.col_scale is not None and pw.col_scale2 is not None
    pw.col_scale.fill_(1)
    pw.col_scale2.fill_(1)
    for value in (127 * 257, 126 * 256 - 128, 126 * 256 + 127):
        stored = torch.full((4096,), value / (127 * 257))
        stored[::128], stored[127::128] = 1, 1  # the largest of every unit, salient or not
        x = torch.empty(1, 4096)
        x[0, pw.order.long()] = stored
        for dtype, int8 in WAYS:
            got = run(pw, x.to(dtype), int8)
            with native.forced_isa("scalar"):
                assert same_bits(got, run(pw, x.to(dtype), int8)), (dtype, int8)


# Shares of salient columns in parts of 16 blocks: from 2 columns per byte to 8, several slices, none. x of the first
# ones fits the first-level cache, that of the last one does not, and others do or not by digits and groups.
PARTS = [[0.05], [0.12], [0.18], [0.25], [0.12, 0.05], [0.05, 0.25, 0.12, 0.05, 0.4], [0.05, 0.4, 0.18]]
PARTS += [[0.0, 0.12], [0.12, 0.18, 0.05, 0.5, 0.0, 0.25, 0.05, 0.05]]


@pytest.mark.parametrize("shares", PARTS)
def test_parts_of_every_kind(isa: str, shares: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARBLLM_L1_KIB", "48")
    for more in (0, 200, 600, 1300):  # columns of a part that is not full: 1, 2 and 3 vectors
        m = 2048 * len(shares) + more
        salient = [share for share in shares for _ in range(16)] + [0.1] * 11
        for (groups, salient_groups), order in itertools.product(ZONES[:3], (1, 2)):
            pw = random_packed(
                37, m, groups=groups, salient_groups=salient_groups, salient_order=order, salient=salient
            )
            for dtype, int8 in WAYS:
                x = torch.randn(1, m, dtype=dtype)
                got = run(pw, x, int8)
                with native.forced_isa("scalar"):
                    assert same_bits(got, run(pw, x, int8)), (dtype, int8, pw.layout)


@pytest.mark.parametrize("salient", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("new", [False, True])
def test_error_of_random_weights_is_below_one_percent(isa: str, salient: float, new: bool) -> None:
    for k in (64, 128, 256):
        pw = random_packed(64, 1024, k, salient=salient, shared=new, coded=new)
        x = torch.randn(4, 1024)
        exact = x.double() @ pw.dequantize().double().T
        error = (run(pw, x, True).double() - exact).norm() / exact.norm()
        assert 1e-4 < float(error) < 0.009, (k, float(error))


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e38])
def test_huge_and_tiny_x(isa: str, size: float) -> None:
    pw = random_packed(8, 300, 128, exponent=-6)
    x = torch.rand(1, 300) * size
    exact = x.double() @ pw.dequantize().double().T
    subnormal = 2.0**-149  # y has no finer steps
    assert bool(((run(pw, x, False).double() - exact).abs() <= bound(pw, x, True) + subnormal).all())
    assert bool((run(pw, x, True).double() - exact).norm() <= 0.012 * exact.norm() + 8 * subnormal)
    assert bool((run(pw, torch.zeros(1, 300), False) == 0).all())


@pytest.mark.parametrize("repack", [False, True])
def test_a_row_that_is_not_finite_leaves_the_others_alone(isa: str, repack: bool) -> None:
    pw = random_packed(8, 300, 128)
    for dtype, int8 in WAYS:
        x = torch.randn(5, 300, dtype=dtype)
        before = run(pw, x, int8, 1, repack)
        x[1, 7], x[3, 299] = float("inf"), float("nan")
        got = run(pw, x, int8, 1, repack)
        assert torch.equal(got[::2], before[::2]) and bool((~got[1::2].isfinite()).all())
        assert bool(got[3].isnan().all())
    assert bool((run(random_packed(3, 64, 64, zero=True), torch.randn(1, 64), True, 1, repack) == 0).all())


def test_int8_is_opt_in_and_says_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_repack", False)
    pw, x = random_packed(8, 300, 128), torch.randn(2, 300)
    exact = linear(x, pw)
    with native.forced_activations("int8"):
        assert torch.equal(linear(x, pw), run(pw, x, True)) and not torch.equal(linear(x, pw), exact)
        many = x.repeat(cpu.dense_batches(cpu.view(ops.packed_args(pw)))[0], 1)
        torch.testing.assert_close(linear(many, pw)[:2], exact, rtol=1e-5, atol=1e-4)  # long batches are exact
        other = random_packed(8, 300, block_size=32)
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
