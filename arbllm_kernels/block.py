"""Block: one block of columns of a binarized matrix, unpacked, in column order.

The solver fills Blocks, PackedWeight stores them and takes them out again; `values` is the one place that says what the
numbers mean (docs/format.md, "Meaning"). n = rows, k = columns of this block, z = zone: salient groups first, then the
non-salient groups; group 0 holds the largest weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Signs, zones and scales of k columns.

    Attributes:
        salient: bool [k], the column bitmap.
        group: int64 [n, k], the group index of every weight.
        sign: bool [n, k], True means +1, first plane.
        second: bool [n, k], second plane; read on salient columns only. None where salient_order is 1.
        row_scale: [n, scales_per_block]; salient group g, order o is at g * salient_order + o, then one per group.
        mean: [n, zones] or None.
        col_scale: [groups, k], or [1, k] where the groups share it, or None; first plane.
        col_scale2: [salient_groups, k], second plane, read on salient columns only. None where col_scale is shared (the
            second plane then has the same column scales) or absent.
        salient_groups: groups among salient columns, 1 or the number of groups.
        row_base: [n] or None. With it the row scales are whole numbers 0..127, in units of the row's base.
    """

    salient: Tensor
    group: Tensor
    sign: Tensor
    second: Tensor | None
    row_scale: Tensor
    mean: Tensor | None
    col_scale: Tensor | None
    col_scale2: Tensor | None
    salient_groups: int
    row_base: Tensor | None = None

    @property
    def salient_order(self) -> int:
        return 1 if self.second is None else 2

    def rounded(self, dtype: torch.dtype) -> Block:
        """The block as it will be stored: every scale rounded to `dtype`, but for row scales that have a base."""

        def cast(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(dtype)

        return dataclasses.replace(
            self,
            row_scale=self.row_scale if self.row_base is not None else self.row_scale.to(dtype),
            row_base=cast(self.row_base),
            mean=cast(self.mean),
            col_scale=cast(self.col_scale),
            col_scale2=cast(self.col_scale2),
        )

    def values(self, factor: float = 1.0) -> Tensor:
        """The weights, float32 [n, k].

        `factor` is a power of two applied to row scales (or their bases) and means. The order of operations is part of
        the format, so that every implementation agrees bit for bit: (row scale * column scale) with its sign, first
        plane plus second plane, plus mean; no fused multiply-add.
        """
        unit = factor if self.row_base is None else (self.row_base.float() * factor)[:, None]
        rows = self.row_scale.float() * unit
        # Everything that depends on the column alone is worked out on [k]: masks of [n, k] cost most of the time.
        group = self.group if self.salient_groups > 1 else self.group * ~self.salient
        others = torch.where(self.salient, 0, self.salient_groups * self.salient_order)
        value = rows.gather(1, group * torch.where(self.salient, self.salient_order, 1) + others)
        if self.col_scale is not None:
            value = value * _of_group(self.col_scale, group)
        value = signed(self.sign, value)
        if self.second is not None:
            columns = torch.nonzero(self.salient)[:, 0]  # the second plane has no scales elsewhere
            group2 = group.index_select(1, columns)
            value2 = rows.gather(1, group2 * 2 + 1)
            col_scale2 = self.col_scale if self.col_scale2 is None else self.col_scale2
            if col_scale2 is not None:
                value2 = value2 * _of_group(col_scale2.index_select(1, columns), group2)
            value.index_add_(1, columns, signed(self.second.index_select(1, columns), value2))
        if self.mean is not None:
            means = self.mean.float() * factor
            value = value + means.gather(1, group + torch.where(self.salient, 0, self.salient_groups))
        return value


def signed(plane: Tensor, value: Tensor) -> Tensor:
    """`value` where the plane is True, else -value. Products with +-1 are exact, and have no branch to mispredict."""
    return value * (2 * plane.to(value.dtype) - 1)


def _of_group(scales: Tensor, group: Tensor) -> Tensor:
    """[groups or 1, k] -> float32 [n, k]: the column scale that each weight meets."""
    return scales.float().gather(0, group) if len(scales) > 1 else scales.float()
