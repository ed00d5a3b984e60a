"""The kernels under ThreadSanitizer and AddressSanitizer; and broken copies of them, which the checks must catch."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import random_packed
from host import SOURCE, Answer, compile_host, run
from test_cuda_host import check, make_case
from torch import Tensor

from arbllm_kernels.packed import PackedWeight

THREADS = ("-O0", "-g", "-fsanitize=thread")
ADDRESSES = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# file, text, what replaces it, flags of the build that must notice it, what it must say
BROKEN = {
    "no barrier before the product": (
        *("gemv.cuh", "wait_copies<1>();\n        sync_block();", "wait_copies<1>();"),
        *(THREADS, "data race"),
    ),
    "no barrier after the product": (
        *("gemv.cuh", "        }\n        sync_block();\n    }\n    write_rows", "        }\n    }\n    write_rows"),
        *(THREADS, "data race"),
    ),
    "a row of words too far": (
        *("gemv.cuh", "w.rows && from < w.words", "w.rows && from <= w.words"),
        *(ADDRESSES, "heap-buffer-overflow"),
    ),
    "a word of the second plane too far": (
        *("gemv.cuh", "w.second[at + 1 < last ? at + 1 : last]", "w.second[at + 1]"),
        *(ADDRESSES, "heap-buffer-overflow"),
    ),
    "copies not waited for": ("gemv.cuh", "wait_copies<1>();", "wait_copies<2>();", ("-O0",), "wrong"),
    "bits of the next row": ("gemv.cuh", "8 * r + lane.row)}", "8 * r + lane.row + 1)}", ("-O0",), "wrong"),
}


@functools.cache
def cases() -> list[tuple[PackedWeight, Tensor]]:
    """Two chunks in one block of threads, and a second plane that ends with its last word."""
    return [
        (random_packed(32, 1152, seed=1), torch.randn(1, 1152)),
        (random_packed(16, 128, salient=0.5), torch.randn(2, 128).half()),
    ]


def run_cases(program: Path) -> list[Answer]:
    # Where nothing is to be kept busy, one block of threads takes all columns.
    return run(program, cases(), SHIM_PROCESSORS="0")


def build(folder: Path, flags: Sequence[str], change: tuple[str, str, str] | None = None) -> Path:
    source = folder / "source"
    shutil.copytree(SOURCE, source)
    if change is not None:
        name, text, replacement = change
        content = (source / name).read_text()
        assert content.count(text) == 1, f"{name} has changed: {text!r} is there {content.count(text)} times"
        (source / name).write_text(content.replace(text, replacement))
    return compile_host(folder / "program", flags, source)


@pytest.mark.parametrize("flags", [THREADS, ADDRESSES], ids=["threads", "addresses"])
def test_nothing_to_report(flags: tuple[str, ...], tmp_path: Path) -> None:
    program = build(tmp_path, flags)
    for case, answer in zip(cases(), run_cases(program), strict=True):
        check(*case, answer)
    for name in ("billm", "shared columns, 8-bit row scales, order", "plain: block 37"):
        case = make_case(name)
        check(*case, run(program, [case])[0])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(name: str, tmp_path: Path) -> None:
    *change, flags, sign = BROKEN[name]
    program = build(tmp_path, flags, tuple(change))
    if sign == "wrong":
        answers = run_cases(program)
        with pytest.raises(AssertionError):
            for case, answer in zip(cases(), answers, strict=True):
                check(*case, answer)
    else:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            run_cases(program)
        assert sign in caught.value.stderr
