"""Pages of a mapped file are given back once a copy of the weight is there; nothing that was written is lost."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from helpers import random_packed

from arbllm_kernels import cpu, native, ops
from arbllm_kernels.linear import linear
from arbllm_kernels.packed import PackedWeight

pytestmark = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="this system does not tell")


@pytest.fixture(autouse=True)
def _on_disk(tmp_path: Path) -> None:
    """What lies in a file system in memory can be given back to swap alone."""
    mounts = [tuple(line.split()[1:3]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    kinds = dict(mounts)
    for folder in (tmp_path, *tmp_path.parents):
        if kinds.get(str(folder)) == "tmpfs":
            pytest.skip("temporary files are in memory")
        if str(folder) in kinds:
            return


PAGE = os.sysconf("SC_PAGESIZE")
Mapped = tuple[PackedWeight, torch.Tensor]


def resident(t: torch.Tensor) -> int:
    """Bytes in memory of the mapping that holds the tensor."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= t.data_ptr() < last
        elif inside and head == "Rss:":
            return 1024 * int(line.split()[1])
    raise AssertionError("no such mapping")


@pytest.fixture()
def mapped(tmp_path: Path) -> Mapped:
    """A weight whose sign plane maps a file, half a page before it, all of it read once; and the plane in memory."""
    pw = random_packed(512, 4096, 128)
    file = tmp_path / "sign"
    with file.open("wb") as out:
        out.write(bytes(PAGE // 2) + pw.sign.numpy().tobytes())
        out.flush()
        os.fsync(out.fileno())  # what is still to be written stays in memory
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=file.stat().st_size)
    sign = torch.empty(0, dtype=torch.int32).set_(storage, PAGE // 8, pw.sign.shape)  # type: ignore[call-overload]
    assert torch.equal(sign, pw.sign) and resident(sign) >= sign.numel() * 4
    return dataclasses.replace(pw, sign=sign), pw.sign


def test_pages_go_when_the_copy_is_made(mapped: Mapped) -> None:
    pw, sign = mapped
    x = torch.randn(1, 4096)
    with native.forced_repack(False):
        stored = linear(x, pw)
    assert resident(pw.sign) >= sign.numel() * 4  # nothing is given back without a copy
    y = linear(x, pw)
    assert resident(pw.sign) <= 2 * PAGE  # what lies only partly in the plane stays
    torch.testing.assert_close(y, stored, rtol=1e-4, atol=1e-3)
    many = x.repeat(cpu.dense_batches(cpu.view(ops.packed_args(pw)), True, torch.float32)[2], 1)
    torch.testing.assert_close(linear(many, pw)[:1], y, rtol=1e-4, atol=1e-3)  # read again
    assert torch.equal(pw.sign, sign)


def test_what_was_written_stays(mapped: Mapped) -> None:
    pw, sign = mapped
    for row in (7, 8, 300):  # of 512 bytes
        pw.sign[row].bitwise_not_()
    linear(torch.randn(1, 4096), pw)
    assert resident(pw.sign) <= 5 * PAGE
    expected = sign.clone()
    expected[[7, 8, 300]] = ~expected[[7, 8, 300]]
    assert torch.equal(pw.sign, expected)
    plain = dataclasses.replace(pw, sign=expected)  # memory that maps nothing
    linear(torch.randn(1, 4096), plain)
    assert torch.equal(plain.sign, expected)
