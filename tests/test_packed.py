"""packed.py and block.py: exact round trips, exact bytes, and one test per rule that `validate` enforces."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import random_packed
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_blocks

from arbllm_kernels.block import Block
from arbllm_kernels.errors import FormatError
from arbllm_kernels.packed import (
    PARTS,
    Layout,
    PackedWeight,
    block_counts,
    pack_bits,
    scale_exponent,
    storage_order,
    unpack_bits,
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    groups = draw(st.sampled_from((1, 2, 4)))
    return Layout(
        rows=draw(st.integers(1, 9)),
        cols=draw(st.integers(1, 150)),
        block_size=draw(st.sampled_from((1, 2, 7, 32, 64, 128))),
        groups=groups,
        salient_groups=draw(st.sampled_from((1, groups))),
        salient_order=draw(st.sampled_from((1, 2))),
        exponent=draw(st.sampled_from((-126, -7, 0, 5))),
    )


any_packing = {
    "layout": layouts(),
    "means": st.booleans(),
    "column_scales": st.booleans(),
    "share": st.sampled_from((0.0, 0.2, 1.0)),
    "dtype": st.sampled_from((torch.float16, torch.float32)),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=60, deadline=None)
@given(**any_packing)
def test_blocks_survive_packing_exactly(layout, means, column_scales, share, dtype, seed):
    blocks = random_blocks(layout, means=means, column_scales=column_scales, share=share, dtype=dtype, seed=seed)
    packed = PackedWeight.from_blocks(blocks, layout)
    back = list(packed.blocks())
    assert len(back) == layout.blocks
    for mine, other in zip(blocks, back, strict=True):
        for field in dataclasses.fields(Block):
            a, b = getattr(mine, field.name), getattr(other, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@settings(max_examples=40, deadline=None)
@given(**any_packing)
def test_dequantize_is_the_formula_written_out_entry_by_entry(layout, means, column_scales, share, dtype, seed):
    layout = dataclasses.replace(layout, rows=min(layout.rows, 3), cols=min(layout.cols, 20))
    blocks = random_blocks(layout, means=means, column_scales=column_scales, share=share, dtype=dtype, seed=seed)
    dense = PackedWeight.from_blocks(blocks, layout).dequantize()
    assert dense.dtype == torch.float32 and tuple(dense.shape) == (layout.rows, layout.cols)
    factor = 2.0**layout.exponent
    for i in range(layout.rows):
        for j in range(layout.cols):
            block, c = blocks[j // layout.block_size], j % layout.block_size
            assert float(dense[i, j]) == pytest.approx(entry(block, layout, i, c, factor), rel=1e-5, abs=1e-6 * factor)


def entry(block: Block, layout: Layout, i: int, c: int, factor: float) -> float:
    """W_ij in double precision, straight from the formula at the head of packed.py."""
    salient = bool(block.salient[c])
    g = int(block.group[i, c])
    if salient and layout.salient_groups == 1:
        g = 0
    first = g * layout.salient_order if salient else layout.salient_scales + g
    value = float(block.row_scale[i, first]) * (1 if block.sign[i, c] else -1)
    if block.col_scale is not None:
        value *= float(block.col_scale[g, c])
    if salient and block.second is not None:
        second = float(block.row_scale[i, first + 1]) * (1 if block.second[i, c] else -1)
        value += second * (1 if block.col_scale2 is None else float(block.col_scale2[g, c]))
    if block.mean is not None:
        value += float(block.mean[i, g if salient else layout.salient_groups + g])
    return value * factor


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, 200), rows=st.integers(1, 4), seed=st.integers(0, 1000))
def test_bits_round_trip(length, rows, seed):
    bits = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) > 0.5
    words = pack_bits(bits)
    assert words.dtype == torch.int32 and tuple(words.shape) == (rows, 2 * math.ceil(length / 64))
    assert torch.equal(unpack_bits(words, length), bits)


def test_bits_are_little_endian_and_padded_with_zeros():
    bits = torch.zeros(70, dtype=torch.bool)
    bits[[0, 9, 31, 64]] = True
    assert pack_bits(bits).numpy().tobytes().hex() == "0102008000000000" + "0100000000000000"


def test_storage_order_puts_salient_columns_of_each_block_first():
    salient = torch.tensor([0, 0, 1, 0, 0, 1, 1]).bool()
    assert storage_order(salient, 4).tolist() == [2, 0, 1, 3, 5, 6, 4]
    assert block_counts(salient, 4).tolist() == [1, 2]


@pytest.mark.parametrize(("absmax", "exponent"), [(0.0, 0), (1.0, 0), (1.999, 0), (2.0, 1), (0.4, -2), (1e-44, -126)])
def test_scale_exponent_brings_the_largest_weight_near_one(absmax, exponent):
    assert scale_exponent(absmax) == exponent


@settings(max_examples=30, deadline=None)
@given(**any_packing)
def test_size_is_the_formula_of_the_format(layout, means, column_scales, share, dtype, seed):
    packed = PackedWeight.from_blocks(
        random_blocks(layout, means=means, column_scales=column_scales, share=share, dtype=dtype, seed=seed), layout
    )
    n, m, salient = layout.rows, layout.cols, packed.salient_columns
    groups, s_groups, order2 = layout.groups, layout.salient_groups, layout.salient_order == 2
    scale_bits = 16 if dtype == torch.float16 else 32
    row_scales = s_groups * layout.salient_order + groups + (s_groups + groups if means else 0)
    columns = groups + (s_groups * salient / m if order2 else 0) if column_scales else 0
    bits = (
        1 + math.log2(groups) + (salient / m if order2 else 0)
        + scale_bits * row_scales * layout.blocks / m + (1 + scale_bits * columns) / n
    )  # fmt: skip
    padding = packed.bits_per_weight * n * m - bits * n * m
    lines = n * (1 + layout.group_bits) + 2  # sign and group rows, column bitmap, second plane
    assert -1e-6 <= padding < 64 * lines
    if m % 64 == 0:
        assert padding < 64 + 1e-6
    assert packed.nominal_bits_per_weight == pytest.approx(1 + (salient / m if order2 else 0))


def test_table_of_the_paper_arb_rc_with_cgb():
    packed = random_packed(256, 512, 128)
    n, m, k, c = 256, 512, 128, packed.salient_columns
    assert packed.bits_per_weight == pytest.approx(2 + c / m + 96 / k + (33 + 32 * c / m) / n, rel=1e-12)


def packing(**changes) -> PackedWeight:
    """A sound weight with all parts, some of them replaced."""
    layout = Layout(rows=3, cols=70, block_size=32, groups=2, salient_groups=2, salient_order=2)
    packed = PackedWeight.from_blocks(random_blocks(layout, means=True, column_scales=True), layout)
    return dataclasses.replace(packed, **changes)


def packing2(**changes) -> PackedWeight:
    """A sound weight with everything that format version 2 adds, some of it replaced."""
    return dataclasses.replace(random_packed(3, 70, 32, shared=True, coded=True, ordered=True), **changes)


SOUND = [(packing, part) for part in packing().tensors()] + [(packing2, part) for part in packing2().tensors()]


def test_the_sound_weights_hold_every_part_between_them():
    assert {part for _, part in SOUND} == set(PARTS)


@pytest.mark.parametrize(("make", "part"), SOUND)
def test_validate_refuses_a_wrong_shape(make, part):
    with pytest.raises(FormatError, match=rf"layer\.{part}: .* must be"):
        make(**{part: getattr(make(), part)[..., :-1].contiguous()}).validate("layer")


@pytest.mark.parametrize(("make", "part"), SOUND)
def test_validate_refuses_a_wrong_dtype(make, part):
    with pytest.raises(FormatError, match=rf"layer\.({part}|row_base): .*must be"):
        make(**{part: getattr(make(), part).to(torch.float64)}).validate("layer")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("groups", "order"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_version_2_is_the_formula_written_out_entry_by_entry(shared, coded, ordered, groups, order):
    packed = random_packed(
        3,
        75,
        32,
        groups=groups,
        salient_order=order,
        shared=shared,
        coded=coded,
        ordered=ordered,
        exponent=-3,
        seed=order,
    )
    expected = torch.full((3, 75), float("nan"), dtype=torch.float64)
    lay, salient, seen = packed.layout, packed.salient_mask, 0
    sign, group = unpack_bits(packed.sign, 75), [unpack_bits(packed.group[:, p], 75) for p in range(lay.group_bits)]
    second = unpack_bits(packed.second, 3 * packed.salient_columns).view(3, -1) if order == 2 else None
    columns = packed.order.tolist()
    assert sorted(columns) == list(range(75))
    for at, j in enumerate(columns):
        for i in range(3):
            g = sum(int(plane[i, at]) << p for p, plane in enumerate(group))
            scales = packed.row_scale[i, at // 32].double() * 2.0**-3
            if coded:
                scales *= float(packed.row_base[i])
            value = scales[g * order if salient[j] else groups * order + g] * (1 if sign[i, at] else -1)
            value *= float(packed.col_scale[0 if shared else g, at])
            if salient[j] and second is not None:
                other = float(packed.col_scale[0, at] if shared else packed.col_scale2[g, seen])
                value += scales[g * 2 + 1] * other * (1 if second[i, seen] else -1)
            expected[i, j] = value
        seen += int(salient[j])
    torch.testing.assert_close(packed.dequantize().double(), expected, rtol=1e-6, atol=1e-6)
    again = PackedWeight.from_blocks(list(packed.blocks()), lay, packed.order.long() if ordered else None)
    for part, t in packed.tensors().items():
        assert torch.equal(t, getattr(again, part)), part


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_base": None}, "row_base: must be there exactly when row_scale is uint8"),
        ({"row_scale": torch.full((3, 3, 6), 128, dtype=torch.uint8)}, "row_scale: holds a code above 127"),
        ({"row_base": torch.tensor([1.0, math.nan, 1.0]).half()}, "row_base: holds NaN or Inf"),
        ({"mean": torch.zeros(3, 3, 4).half()}, "mean: not possible with uint8 row scales"),
        ({"col_scale": None}, "col_scale: missing, but layout.shared_columns is set"),
        ({"col_scale2": torch.zeros(2, 5).half()}, "col_scale2: must be there exactly when"),
        ({"columns": torch.zeros(70, dtype=torch.int16)}, "columns: is not a permutation of 0..69"),
        ({"columns": torch.arange(70, dtype=torch.int16) - 1}, "columns: is not a permutation of 0..69"),
        ({"columns": packing2().columns.flip(0)}, "columns: the salient columns of a block must come first"),
    ],
)
def test_validate_refuses_broken_parts_of_version_2(changes, message):
    with pytest.raises(FormatError, match=rf"weight\.{message}"):
        packing2(**changes).validate()


def test_an_explicit_order_numbers_columns_beyond_32767():
    packed = random_packed(1, 40000, 512, ordered=True)
    assert sorted(packed.order.tolist()) == list(range(40000))
    with pytest.raises(FormatError, match="an explicit column order holds at most 65536"):
        random_packed(1, 65537, 512, ordered=True)


def test_validate_refuses_scales_of_mixed_dtypes():
    with pytest.raises(FormatError, match=r"weight\.mean: torch\.float32 .* must be torch\.float16"):
        packing(mean=packing().mean.float()).validate()


@pytest.mark.parametrize("part", ["row_scale", "mean", "col_scale", "col_scale2"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_validate_refuses_non_finite_scales(part, value):
    scale = getattr(packing(), part).clone()
    scale.view(-1)[-1] = value
    broken = packing(**{part: scale})
    with pytest.raises(FormatError, match=rf"weight\.{part}: holds NaN or Inf"):
        broken.validate()
    assert broken.validate(finite=False) is broken


@pytest.mark.parametrize("part", ["sign", "group", "second", "salient"])
def test_validate_refuses_padding_bits(part):
    plane = getattr(packing(), part).clone()
    plane.view(-1)[-1] = -(1 << 31)
    with pytest.raises(FormatError, match=rf"weight\.{part}: padding bits after"):
        packing(**{part: plane}).validate()


@pytest.mark.parametrize("part", ["col_scale", "col_scale2"])
def test_validate_refuses_column_scales_that_do_not_come_together(part):
    with pytest.raises(FormatError, match="col_scale2: must be there exactly when"):
        packing(**{part: None}).validate()


def test_validate_refuses_strided_parts():
    wide = packing().sign.repeat_interleave(2, dim=1)[:, ::2]
    with pytest.raises(FormatError, match=r"weight\.sign: must be contiguous"):
        packing(sign=wide).validate()


def test_a_salient_bitmap_that_counts_wrong_is_refused():
    bitmap = packing().salient.clone()
    bitmap[0] ^= 1
    with pytest.raises(FormatError, match=r"weight\.(second|col_scale2): .* must be"):
        packing(salient=bitmap).validate()


def test_from_blocks_refuses_scales_that_overflow_fp16():
    layout = packing().layout
    blocks = random_blocks(layout, means=False, column_scales=False, dtype=torch.float32)
    blocks[0].row_scale[0, 0] = 1e6
    with pytest.raises(FormatError, match=r"row_scale: holds NaN or Inf"):
        PackedWeight.from_blocks([b.rounded(torch.float16) for b in blocks], layout)


def test_from_blocks_refuses_blocks_that_hold_different_parts():
    layout = packing().layout
    blocks = random_blocks(layout, means=True, column_scales=False)
    blocks[1] = dataclasses.replace(blocks[1], mean=None)
    with pytest.raises(FormatError, match="same parts"):
        PackedWeight.from_blocks(blocks, layout)


def test_layout_round_trip():
    layout = packing().layout
    assert Layout.from_dict(layout.to_dict()) == layout
    shared = packing2().layout
    assert Layout.from_dict(shared.to_dict()) == shared
    assert "shared_columns" not in layout.to_dict()
    with pytest.raises(FormatError, match="shared_columns = False: must be true or absent"):
        Layout.from_dict({**layout.to_dict(), "shared_columns": False})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 0), ("rows", (1 << 24) + 1), ("rows", 2.0), ("rows", True), ("cols", -1), ("cols", "6"),
        ("block_size", 0), ("block_size", 65537), ("groups", 3), ("groups", [2]), ("salient_groups", 4),
        ("salient_order", 3), ("exponent", 127), ("exponent", -127), ("exponent", None), ("method", "gptq"),
        ("method", ["arb"]),
    ],
)  # fmt: skip
def test_layout_refuses_values_out_of_range(field, value):
    values = {**packing().layout.to_dict(), field: value}
    with pytest.raises(FormatError, match=rf"layer: layout\.{field} = "):
        Layout.from_dict(values, "layer")


@pytest.mark.parametrize("values", [None, [], "layout", {}, {"rows": 1}])
def test_layout_refuses_missing_fields(values):
    with pytest.raises(FormatError, match="exactly the fields"):
        Layout.from_dict(values)


def test_moving_to_a_device_keeps_every_part():
    packed = packing()
    moved = packed.to("cpu")
    assert all(torch.equal(t, moved.tensors()[name]) for name, t in packed.tensors().items())
    assert moved.shape == (3, 70)
