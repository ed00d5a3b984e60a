"""PackedWeight: one binarized matrix as bit planes and scales, and the plain-torch authority on what it means.

For row i, column j of block b, in zone z = (salient?, group), with binary planes o = 1, 2:

    W_ij = mean[i,b,z] + sum_o  row_scale[i,b,z,o] * col_scale_o[group,j] * B_o[i,j]          B in {-1, +1}

Everything but the column bitmap is kept in *storage order*: inside each block the salient columns come first, then the
others, both ascending. So every zone's columns are contiguous, and the second plane needs no index. A weight may bring
an order of its own (`columns`); its blocks are then consecutive in that order, salient columns first all the same.
docs/format.md is the normative text; every native path must equal `dequantize` bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .block import Block
from .config import GROUPS, METHODS
from .errors import FormatError

WORD = 64  # rows of the sign and group planes are padded with zero bits to whole words of so many bits
PARTS = ("sign", "group", "second", "salient", "row_scale", "row_base", "mean", "col_scale", "col_scale2", "columns")
MAX_DIM = 1 << 24
MAX_ORDERED = 1 << 16  # most columns of a weight with an explicit column order, whose numbers take 16 bits
MAX_CODE = 127  # largest 8-bit row scale: seven bits, so that products with signed bytes fit 16-bit pair sums
EXPONENT_RANGE = range(-126, 127)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes that fix every shape of a PackedWeight; stored as JSON beside its tensors.

    `rows` x `cols` is out_features x in_features. Row scales and means are multiplied by 2**exponent when read, which
    keeps fp16 scales inside their range whatever the magnitude of the matrix. With `shared_columns` a column has one
    scale for all groups and both planes.
    """

    rows: int
    cols: int
    block_size: int
    groups: int
    salient_groups: int
    salient_order: int
    exponent: int = 0
    method: str = "arb-rc"
    shared_columns: bool = False

    @property
    def blocks(self) -> int:
        return -(-self.cols // self.block_size)

    @property
    def group_bits(self) -> int:
        """Group planes: bits of group index per weight."""
        return (self.groups - 1).bit_length()

    @property
    def words(self) -> int:
        """int32 words per row of a plane over all columns."""
        return -(-self.cols // WORD) * (WORD // 32)

    @property
    def salient_scales(self) -> int:
        """Row scales of the salient part, per row and block."""
        return self.salient_groups * self.salient_order

    @property
    def scales_per_block(self) -> int:
        """Row scales per row and block: salient (group-major, then order), then non-salient groups."""
        return self.salient_scales + self.groups

    @property
    def zones(self) -> int:
        """Zones per block: salient groups, then non-salient groups."""
        return self.salient_groups + self.groups

    def second_words(self, salient_columns: int) -> int:
        """int32 words of the second plane: a row-major bit stream of rows x salient_columns, in whole 64-bit words."""
        bits = self.rows * salient_columns if self.salient_order == 2 else 0
        return -(-bits // WORD) * (WORD // 32)

    @property
    def column_groups(self) -> int:
        """Column scales per column, first plane."""
        return 1 if self.shared_columns else self.groups

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `shared_columns`, which format version 1 does not know, only where it is set."""
        values = dataclasses.asdict(self)
        return values if self.shared_columns else {k: v for k, v in values.items() if k != "shared_columns"}

    @classmethod
    def from_dict(cls, values: object, name: str = "weight") -> Layout:
        """Read and check a layout. Raises FormatError naming the field."""
        fields = {f.name for f in dataclasses.fields(cls)} - {"shared_columns"}
        if not isinstance(values, dict) or set(values) - {"shared_columns"} != fields:
            raise FormatError(f"{name}: layout must be an object with exactly the fields {sorted(fields)}")
        if values.get("shared_columns", True) is not True:
            raise FormatError(f"{name}: layout.shared_columns = {values['shared_columns']!r}: must be true or absent")
        checks: dict[str, Any] = {
            "rows": range(1, MAX_DIM + 1),
            "cols": range(1, MAX_DIM + 1),
            "block_size": range(1, 65537),
            "groups": GROUPS,
            "salient_groups": (1, values["groups"]),
            "salient_order": (1, 2),
            "exponent": EXPONENT_RANGE,
        }
        for field, allowed in checks.items():
            value = values[field]
            if type(value) is not int or value not in allowed:
                raise FormatError(f"{name}: layout.{field} = {value!r} is not in {allowed}")
        if values["method"] not in METHODS:
            raise FormatError(f"{name}: layout.method = {values['method']!r} is not one of {', '.join(METHODS)}")
        return cls(**values)


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedWeight:
    """A binarized [rows, cols] matrix (n = rows, m = cols, C = salient columns in all, k = block size).

    Attributes:
        sign: int32 [n, words], first sign plane, bit 1 means +1.
        group: int32 [n, group_bits, words], bit p of the group index of each weight; group 0 is the largest.
        second: int32 [second_words], second sign plane, bit stream of [n, C] over salient columns.
        salient: int32 [words], column bitmap, in column order; bit 1 means salient.
        row_scale: [n, blocks, scales_per_block], fp16, fp32, or uint8 0..127 in units of row_base.
        row_base: fp16 or fp32 [n], exactly with uint8 row scales.
        mean: fp16 or fp32 as row_scale, [n, blocks, zones]; None where the method has no means.
        col_scale: fp16 or fp32 as row_scale or row_base, [groups, m] ([1, m] if shared); None where there is none.
        col_scale2: like col_scale, [salient_groups, C] for the second plane; None where there is none or it is shared.
        columns: int16 [m] (the bits of uint16), the column at each storage position; None for the order that follows
            from `salient`.
    """

    layout: Layout
    sign: Tensor
    group: Tensor
    second: Tensor
    salient: Tensor
    row_scale: Tensor
    row_base: Tensor | None = None
    mean: Tensor | None = None
    col_scale: Tensor | None = None
    col_scale2: Tensor | None = None
    columns: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.layout.rows, self.layout.cols

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by part name."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: t for name, t in parts.items() if t is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, padding included."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        """True storage: 8 * nbytes / (rows * cols)."""
        return 8 * self.nbytes / (self.layout.rows * self.layout.cols)

    @property
    def nominal_bits_per_weight(self) -> float:
        """The paper's figure: sign bits alone (1 + C/m), without bitmaps and scales."""
        extra = self.salient_columns if self.layout.salient_order == 2 else 0
        return 1 + extra / self.layout.cols

    @functools.cached_property
    def salient_mask(self) -> Tensor:
        """bool [m], in column order."""
        return unpack_bits(self.salient, self.layout.cols)

    @functools.cached_property
    def salient_columns(self) -> int:
        """Salient columns in all blocks together (C)."""
        return int(self.salient_mask.sum())

    @functools.cached_property
    def salient_counts(self) -> Tensor:
        """int32 [blocks]: salient columns of each block."""
        mask = self.salient_mask if self.columns is None else self.salient_mask[self.order.long()]
        return block_counts(mask, self.layout.block_size)

    @functools.cached_property
    def order(self) -> Tensor:
        """int32 [m]: the column kept at each storage position."""
        if self.columns is not None:
            return self.columns.int() & 0xFFFF
        return storage_order(self.salient_mask, self.layout.block_size)

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        moved: dict[str, Any] = {name: t.to(device) for name, t in self.tensors().items()}
        return dataclasses.replace(self, **moved)

    def dequantize(self) -> Tensor:
        """The dense [n, m] float32 matrix that every kernel multiplies by (Block.values gives the arithmetic)."""
        dense = torch.cat([block.values(2.0**self.layout.exponent) for block in self.blocks()], dim=1)
        return dense if self.columns is None else dense[:, torch.argsort(self.order)]

    def blocks(self) -> Iterator[Block]:
        """Unpack block by block; inverse of `from_blocks`.

        The columns of a block come in column order, or in storage order where that is explicit.
        """
        lay = self.layout
        sign, group = self._sign_bits, self._group_index
        second_bits = self._second_bits if self._order2 else None
        first = 0
        for b, count in enumerate(self.salient_counts.tolist()):
            start, stop = b * lay.block_size, min((b + 1) * lay.block_size, lay.cols)
            width, here = stop - start, self.order[start:stop].long()
            back = torch.arange(width, device=here.device) if self.columns is not None else torch.argsort(here)
            second = None
            if second_bits is not None:
                second = F.pad(second_bits[:, first : first + count], (0, width - count))[:, back]
            col_scale2 = None
            if self.col_scale2 is not None:
                col_scale2 = F.pad(self.col_scale2[:, first : first + count], (0, width - count))[:, back]
            yield Block(
                salient=self.salient_mask[here][back],
                group=group[:, start:stop][:, back],
                sign=sign[:, start:stop][:, back],
                second=second,
                row_scale=self.row_scale[:, b],
                mean=None if self.mean is None else self.mean[:, b],
                col_scale=None if self.col_scale is None else self.col_scale[:, start:stop][:, back],
                col_scale2=col_scale2,
                salient_groups=lay.salient_groups,
                row_base=self.row_base,
            )
            first += count

    @classmethod
    def from_blocks(cls, blocks: Sequence[Block], layout: Layout, columns: Tensor | None = None) -> PackedWeight:
        """Store blocks (all of `layout.block_size` columns, the last may be shorter) as they are, scales included.

        Args:
            columns: int64 [m], the column that stands at each place of the blocks; None for column order.

        Raises:
            FormatError: a scale is not finite in its storage type; more columns than an explicit order can number.
        """
        salient = torch.cat([b.salient for b in blocks])
        order = storage_order(salient, layout.block_size).long()
        bitmap, explicit = salient, None
        if columns is not None:
            if layout.cols > MAX_ORDERED:
                raise FormatError(f"{layout.cols} columns: an explicit column order holds at most {MAX_ORDERED}")
            bitmap = torch.empty_like(salient).index_put_((columns,), salient)
            explicit = columns[order].to(torch.int32).to(torch.int16)
        group = torch.cat([b.group.to(torch.uint8) for b in blocks], 1)[:, order]
        group_planes = [pack_bits((group >> p & 1).bool()) for p in range(layout.group_bits)]
        empty = torch.empty(layout.rows, 0, layout.words, dtype=torch.int32, device=salient.device)
        firsts = order[salient[order]]  # salient places in storage order
        second = torch.empty(0, dtype=torch.bool, device=salient.device)
        if layout.salient_order == 2:
            second = torch.cat([_present(b.second) for b in blocks], 1)[:, firsts].reshape(-1)
        mean = col_scale = col_scale2 = None
        if blocks[0].mean is not None:
            mean = torch.stack([_present(b.mean) for b in blocks], 1).contiguous()
        if blocks[0].col_scale is not None:
            col_scale = torch.cat([_present(b.col_scale) for b in blocks], 1)[:, order].contiguous()
        if blocks[0].col_scale2 is not None:
            col_scale2 = torch.cat([_present(b.col_scale2) for b in blocks], 1)[:, firsts].contiguous()
        packed = cls(
            layout=layout,
            sign=pack_bits(torch.cat([b.sign for b in blocks], 1)[:, order]),
            group=torch.stack(group_planes, 1) if group_planes else empty,
            second=pack_bits(second),
            salient=pack_bits(bitmap),
            row_scale=torch.stack([b.row_scale for b in blocks], 1).contiguous(),
            row_base=blocks[0].row_base,
            mean=mean,
            col_scale=col_scale,
            col_scale2=col_scale2,
            columns=explicit,
        )
        return packed.validate()

    @property
    def _order2(self) -> bool:
        return self.layout.salient_order == 2

    @property
    def _sign_bits(self) -> Tensor:
        return unpack_bits(self.sign, self.layout.cols)

    @property
    def _second_bits(self) -> Tensor:
        bits = unpack_bits(self.second, self.layout.rows * self.salient_columns)
        return bits.view(self.layout.rows, self.salient_columns)

    @property
    def _group_index(self) -> Tensor:
        """int64 [n, m] in storage order."""
        index = torch.zeros(self.layout.rows, self.layout.cols, dtype=torch.int64, device=self.sign.device)
        for p in range(self.layout.group_bits):
            index += unpack_bits(self.group[:, p], self.layout.cols).long() << p
        return index

    def validate(self, name: str = "weight", *, finite: bool = True) -> PackedWeight:
        """Check every shape, dtype, code and order, and (with `finite`) scales and padding too. Returns self.

        Codes and order decide what the kernels compute; parts on the meta device have no content to check.

        Raises:
            FormatError: naming `name`, the part and what was expected.
        """
        lay = self.layout
        coded = self.row_scale.dtype is torch.uint8
        if coded != (self.row_base is not None):
            raise FormatError(f"{name}.row_base: must be there exactly when row_scale is uint8")
        scale = self.row_scale.dtype if self.row_base is None else self.row_base.dtype
        if scale not in (torch.float16, torch.float32):
            part = "row_base" if coded else "row_scale"
            raise FormatError(f"{name}.{part}: dtype {scale}, must be float16 or float32")
        if self.row_base is not None:
            _expect(name, "row_base", self.row_base, scale, (lay.rows,))
        _expect(name, "sign", self.sign, torch.int32, (lay.rows, lay.words))
        _expect(name, "group", self.group, torch.int32, (lay.rows, lay.group_bits, lay.words))
        _expect(name, "salient", self.salient, torch.int32, (lay.words,))
        rows = (lay.rows, lay.blocks, lay.scales_per_block)
        _expect(name, "row_scale", self.row_scale, torch.uint8 if coded else scale, rows)
        total = self.salient_columns
        _expect(name, "second", self.second, torch.int32, (lay.second_words(total),))
        if self.mean is not None:
            if coded:
                raise FormatError(f"{name}.mean: not possible with uint8 row scales")
            _expect(name, "mean", self.mean, scale, (lay.rows, lay.blocks, lay.zones))
        if lay.shared_columns and self.col_scale is None:
            raise FormatError(f"{name}.col_scale: missing, but layout.shared_columns is set")
        second_scales = self.col_scale is not None and self._order2 and not lay.shared_columns
        if (self.col_scale2 is not None) != second_scales:
            raise FormatError(
                f"{name}.col_scale2: must be there exactly when col_scale is, salient_order is 2, shared_columns unset"
            )
        if self.col_scale is not None:
            _expect(name, "col_scale", self.col_scale, scale, (lay.column_groups, lay.cols))
        if self.col_scale2 is not None:
            _expect(name, "col_scale2", self.col_scale2, scale, (lay.salient_groups, total))
        if self.columns is not None:
            _expect(name, "columns", self.columns, torch.int16, (lay.cols,))
            if lay.cols > MAX_ORDERED:
                raise FormatError(f"{name}.columns: an explicit order holds at most {MAX_ORDERED} columns")
        if self.row_scale.device.type != "meta":
            if self.row_base is not None and int(self.row_scale.max()) > MAX_CODE:
                raise FormatError(f"{name}.row_scale: holds a code above {MAX_CODE}")
            if self.columns is not None:
                self._check_order(name)
            if finite:
                self._check_content(name)
        return self

    def _check_content(self, name: str) -> None:
        for part in ("row_scale", "row_base", "mean", "col_scale", "col_scale2"):
            t = getattr(self, part)
            if t is not None and not bool(torch.isfinite(t).all()):
                raise FormatError(f"{name}.{part}: holds NaN or Inf")
        for part in ("sign", "group", "salient"):
            if _padding_is_set(getattr(self, part), self.layout.cols):
                raise FormatError(f"{name}.{part}: padding bits after column {self.layout.cols} must be zero")
        bits = self.layout.rows * self.salient_columns if self._order2 else 0
        if _padding_is_set(self.second, bits):
            raise FormatError(f"{name}.second: padding bits after bit {bits} must be zero")

    def _check_order(self, name: str) -> None:
        lay, order = self.layout, self.order.long()
        if not torch.equal(order.sort().values, torch.arange(lay.cols, device=order.device)):
            raise FormatError(f"{name}.columns: is not a permutation of 0..{lay.cols - 1}")
        places = torch.arange(lay.cols, device=order.device, dtype=torch.int32)
        if not torch.equal(storage_order(self.salient_mask[order], lay.block_size), places):
            raise FormatError(f"{name}.columns: the salient columns of a block must come first")


def pack_bits(bits: Tensor) -> Tensor:
    """bool [..., L] -> int32 [..., W]: little-endian words, zero-padded to a multiple of 64 bits."""
    length = bits.shape[-1]
    width = -(-length // WORD) * WORD
    if bits.device.type != "cpu":  # eight times the bytes of the answer would go to the host
        words = torch.nn.functional.pad(bits, (0, width - length)).view(*bits.shape[:-1], width // 32, 32)
        places = torch.arange(32, dtype=torch.int32, device=bits.device)
        return (words.int() << places).sum(-1, dtype=torch.int32)
    padded = np.zeros((*bits.shape[:-1], width), dtype=np.uint8)
    padded[..., :length] = bits.numpy()
    found = np.packbits(padded, axis=-1, bitorder="little").view("<i4").astype(np.int32, copy=False)
    return torch.from_numpy(found.reshape(*bits.shape[:-1], width // 32))


def unpack_bits(words: Tensor, length: int) -> Tensor:
    """int32 [..., W] -> bool [..., length]; inverse of `pack_bits`."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.reshape(*words.shape[:-1], words.shape[-1] * 32)[..., :length].bool()


def storage_order(salient: Tensor, block_size: int) -> Tensor:
    """bool [m] -> int32 [m]: columns block by block, salient ones first, each part ascending."""
    block = torch.arange(salient.numel(), device=salient.device) // block_size
    return torch.argsort(2 * block + (~salient).long(), stable=True).int()


def block_counts(salient: Tensor, block_size: int) -> Tensor:
    """bool [m] -> int32 [blocks]: salient columns per block."""
    padding = -salient.numel() % block_size
    return torch.nn.functional.pad(salient, (0, padding)).view(-1, block_size).sum(1, dtype=torch.int32)


def _present(t: Tensor | None) -> Tensor:
    if t is None:
        raise FormatError("blocks of one matrix must hold the same parts")
    return t


def _expect(name: str, part: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if t.dtype != dtype or tuple(t.shape) != shape:
        raise FormatError(f"{name}.{part}: {t.dtype} {list(t.shape)}, must be {dtype} {list(shape)}")
    if not t.is_contiguous():
        raise FormatError(f"{name}.{part}: must be contiguous")


def _padding_is_set(words: Tensor, length: int) -> bool:
    """Whether any bit past `length` is set in the last axis."""
    first = length // 32
    tail = words[..., first:]
    if tail.numel() == 0:
        return False
    mask = torch.full((tail.shape[-1],), -1, dtype=torch.int32, device=words.device)
    mask[0] = -(1 << (length % 32)) if length % 32 else -1
    return bool((tail & mask).any())


def scale_exponent(absmax: float) -> int:
    """The power of two that brings a matrix of this largest magnitude into [1, 2); 0 for an all-zero matrix."""
    if absmax == 0.0:
        return 0
    return max(EXPONENT_RANGE.start, min(EXPONENT_RANGE.stop - 1, math.frexp(absmax)[1] - 1))
