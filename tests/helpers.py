"""Packed weights of any shape, built the way the solver builds them (Block -> PackedWeight), and their native side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from arbllm_kernels import cpu, native
from arbllm_kernels.block import Block
from arbllm_kernels.packed import MAX_CODE, Layout, PackedWeight


def random_packed(
    rows: int,
    cols: int,
    block_size: int = 128,
    *,
    groups: int = 2,
    salient_groups: int | None = None,
    salient_order: int = 2,
    mean: bool = False,
    col_scale: bool = True,
    dtype: torch.dtype = torch.float16,
    exponent: int = 0,
    salient: float | Sequence[float] | None = None,
    shared: bool = False,
    coded: bool = False,
    joined: bool = False,
    ordered: bool = False,
    zero: bool = False,
    seed: int = 0,
) -> PackedWeight:
    """A PackedWeight of random bits and scales.

    `salient` is the share of salient columns per block, or that of each (None: up to 40 %, another count in each).
    Scales lie in 0.5 .. 1.5, means in -0.5 .. 0.5; `zero` makes all of them zero. Format 2: `shared` column scales,
    `coded` 8-bit row scales (if `joined`, the two of a salient group add up to a code, as arb-levels makes them), an
    explicit column order if `ordered`.
    """
    g = torch.Generator().manual_seed(seed)
    layout = Layout(
        rows=rows,
        cols=cols,
        block_size=block_size,
        groups=groups,
        salient_groups=groups if salient_groups is None else salient_groups,
        salient_order=salient_order,
        exponent=exponent,
        method="arb-rc" if col_scale else "arb",
        shared_columns=shared,
    )

    def scales(*shape: int, offset: float = 0.5) -> Tensor:
        return ((torch.rand(*shape, generator=g) + offset) * (0.0 if zero else 1.0)).to(dtype)

    def bits(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) > 0.5

    def row_scales() -> Tensor:
        codes = torch.randint(0, MAX_CODE + 1, (rows, layout.scales_per_block), generator=g, dtype=torch.uint8)
        if joined:
            first, second = codes[:, : 2 * layout.salient_groups].view(rows, -1, 2).unbind(-1)
            second.copy_((MAX_CODE - first).minimum(second))
        return codes if coded else scales(rows, layout.scales_per_block)

    row_base = scales(rows) if coded else None
    blocks = []
    for start in range(0, cols, block_size):
        k = min(block_size, cols - start)
        most = int(0.4 * k) + 1
        if salient is None:
            count = int(torch.randint(0, most + 1, (1,), generator=g))
        else:
            count = round((salient[len(blocks)] if isinstance(salient, Sequence) else salient) * k)
        mask = torch.zeros(k, dtype=torch.bool)
        mask[torch.randperm(k, generator=g)[: min(count, k)]] = True
        order2 = salient_order == 2
        blocks.append(
            Block(
                salient=mask,
                group=torch.randint(0, groups, (rows, k), generator=g),
                sign=bits(rows, k),
                second=bits(rows, k) if order2 else None,
                row_scale=row_scales(),
                mean=scales(rows, layout.zones, offset=-0.5) if mean else None,
                col_scale=scales(layout.column_groups, k) if col_scale else None,
                col_scale2=scales(layout.salient_groups, k) if col_scale and order2 and not shared else None,
                salient_groups=layout.salient_groups,
                row_base=row_base,
            )
        )
    return PackedWeight.from_blocks(blocks, layout, torch.randperm(cols, generator=g) if ordered else None)


def native_weight(args: Sequence[Any], repack: bool = False) -> Any:
    """The native weight behind ops.packed_args. The caller keeps the tensors alive."""
    return native.extension.Weight(cpu.view(args), repack)


def element(dtype: torch.dtype) -> Any:
    """Of x and y, as the extension names it."""
    return getattr(native.extension.Element, cpu.ELEMENTS[dtype])
