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
from test_cuda_host import KERNELS, ONE_BLOCK, check, make_case, whole_numbers
from torch import Tensor

from arbllm_kernels.packed import PackedWeight

# Without inlining GCC's sanitizer overlooks a store of what a function returns.
THREADS = ("-O1", "-g", "-fsanitize=thread")
ADDRESSES = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# file, text, what replaces it, flags of the build that must notice it, what it must say
WAIT = ("wait_copies<1>();\n        sync_block();", "wait_copies<1>();")
BROKEN = {
    "binary: no barrier before the product": ("gemv_binary.cuh", *WAIT, THREADS, "data race"),
    "bf16: no barrier before the product": ("gemv_bf16.cuh", *WAIT, THREADS, "data race"),
    "binary: no barrier after the product": (
        *(
            "gemv_binary.cuh",
            "        }\n        sync_block();\n    }\n    write_sums",
            "        }\n    }\n    write_sums",
        ),
        *(THREADS, "data race"),
    ),
    "bf16: no barrier after the product": (
        *(
            "gemv_bf16.cuh",
            "        }\n        sync_block();\n    }\n    write_rows",
            "        }\n    }\n    write_rows",
        ),
        *(THREADS, "data race"),
    ),
    "binary: zeros that may come late": (
        *(
            "gemv_binary.cuh",
            "b[lane] = make_uint4(0, 0, 0, 0);\n        sync_warp();",
            "b[lane] = make_uint4(0, 0, 0, 0);",
        ),
        *(THREADS, "data race"),
    ),
    "a row of words too far": (
        *("chunks.cuh", "from < minimum(w.words,", "from <= minimum(w.words,"),
        *(ADDRESSES, "heap-buffer-overflow"),
    ),
    "a word of the second plane too far": (
        *("chunks.cuh", "w.second[at + 1 < last ? at + 1 : last]", "w.second[at + 1]"),
        *(ADDRESSES, "heap-buffer-overflow"),
    ),
    "binary: no plane of ones": (
        *("gemv_binary.cuh", "ones ? make_uint2(0, valid)", "ones ? make_uint2(0, 0)", ("-O0",), "wrong"),
    ),
    "binary: no plane of ones for few columns": (
        *("gemv_binary.cuh", "b[3 * 2 + group] = make_uint2(0, valid)", "b[3 * 2 + group] = make_uint2(0, 0)"),
        *(("-O0",), "wrong"),
    ),
    "binary: copies not waited for": ("gemv_binary.cuh", "wait_copies<1>();", "wait_copies<2>();", ("-O0",), "wrong"),
    "bf16: copies not waited for": ("gemv_bf16.cuh", "wait_copies<1>();", "wait_copies<2>();", ("-O0",), "wrong"),
    "binary: bits of the next row": (
        *("gemv_binary.cuh", "shuffle(second, 8 * r + lane.row)", "shuffle(second, 8 * r + lane.row + 1)"),
        *(("-O0",), "wrong"),
    ),
    "bf16: bits of the next row": ("gemv_bf16.cuh", "8 * r + lane.row)}", "8 * r + lane.row + 1)}", ("-O0",), "wrong"),
}


@functools.cache
def cases() -> list[tuple[PackedWeight, Tensor]]:
    """Several chunks in one block of threads, a second plane that ends with its last word, and few salient
    columns; whole numbers, which must come out exact."""
    return [
        (random_packed(130, 1152, seed=1), torch.randn(1, 1152)),
        (random_packed(16, 128, salient=0.5), torch.randn(1, 128).half()),
        (random_packed(40, 256, salient=0.1), torch.randn(1, 256).half()),
        whole_numbers(5, 300, 1, torch.float32),
        whole_numbers(5, 300, 1, torch.float16),
    ]


def run_cases(program: Path, major: str) -> list[Answer]:
    return run(program, cases(), **ONE_BLOCK, SHIM_MAJOR=major)


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
    for major in KERNELS.values():
        for case, answer in zip(cases(), run_cases(program, major), strict=True):
            check(*case, answer)
        for name in ("billm", "shared columns, 8-bit row scales, order", "plain: block 37"):
            case = make_case(name)
            check(*case, run(program, [case], SHIM_MAJOR=major)[0])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(name: str, tmp_path: Path) -> None:
    *change, flags, sign = BROKEN[name]
    program = build(tmp_path, flags, tuple(change))
    major = KERNELS["bf16" if name.startswith("bf16") else "binary"]
    if sign == "wrong":
        answers = run_cases(program, major)
        with pytest.raises(AssertionError):
            for case, answer in zip(cases(), answers, strict=True):
                check(*case, answer)
    else:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            run_cases(program, major)
        assert sign in caught.value.stderr
