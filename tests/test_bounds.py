"""CPU kernels read nothing past the end of a packed weight: behind each part lies a page that cannot be read."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from typing import Any

import pytest
import torch
from cpu_products import WAYS, run
from helpers import random_packed
from torch import Tensor

from arbllm_kernels.packed import PackedWeight

LIBC = ctypes.CDLL(None, use_errno=True)
LAYOUTS: list[dict[str, Any]] = [
    *({"block_size": k, "groups": groups} for k in (64, 100, 128) for groups in (1, 2)),
    {"block_size": 128, "groups": 1, "mean": True, "col_scale": False},
    {"block_size": 128, "salient_order": 1},
    {"block_size": 128, "dtype": torch.float32},
    {"block_size": 128, "salient": 0.0},
    {"block_size": 1024, "shared": True, "coded": True},
    {"block_size": 1024, "shared": True, "coded": True, "salient": 0.0},
    {"block_size": 1024, "shared": True, "coded": True, "salient_order": 1, "salient_groups": 1},
]


def guarded(t: Tensor) -> Tensor:
    """A copy of t at the end of readable memory: one byte more is a segmentation fault."""
    if t.numel() == 0:
        return t
    size = t.numel() * t.element_size()
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert LIBC.mprotect(ctypes.c_void_p(address + whole), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=whole - size).view(t.shape).copy_(t)


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_nothing_is_read_past_the_end(isa: str, options: dict[str, Any]) -> None:
    for n, m in ((1, 60), (5, 300), (3, 2100)):
        pw = random_packed(n, m, **options)
        at_the_end = PackedWeight(layout=pw.layout, **{name: guarded(t) for name, t in pw.tensors().items()})
        for batch in (1, 3):
            for (dtype, int8), repack in itertools.product(WAYS, (False, True)):
                x = guarded(torch.randn(batch, m, dtype=dtype))
                assert torch.equal(run(at_the_end, x, int8, 1, repack), run(pw, x, int8, 1, repack))
