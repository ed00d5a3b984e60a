"""Builds csrc/cuda as host C++ with the shim and runs cases in it: the kernels' own source, an OS thread per thread."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from arbllm_kernels.cuda import BUFFERS, TYPES, Weight, _Buffer
from arbllm_kernels.ops import packed_args
from arbllm_kernels.packed import PackedWeight

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc" / "cuda"
HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off", "-DARB_HOST_SHIM")


def compile_host(target: Path, flags: Sequence[str] = ("-O1",), source: Path = SOURCE) -> Path:
    """An executable that runs cases, or with -shared the library that arbllm_kernels.cuda can load."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert compiler, "a C++ compiler built this package, so one is here"
    main = [] if "-shared" in flags else [str(HERE / "shim_main.cpp")]
    include = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{source}", f"-I{HERE}"]
    files = ["-x", "c++", str(source / "launchers.cu"), *main]
    subprocess.run([compiler, *FLAGS, *flags, *include, *files, "-pthread", "-o", str(target)], check=True)
    return target


TIME_LIMIT = 150  # seconds for one program; the slowest takes a few


@dataclass
class Answer:
    """y and the dense weight as the kernels gave them."""

    y: Tensor
    dense: Tensor


def run(program: Path, cases: Sequence[tuple[PackedWeight, Tensor]], **environment: str) -> list[Answer]:
    """y and dense weight of every (weight, x [batch, m]). Raises CalledProcessError where the program is killed."""
    stem = program.with_suffix("")
    given, taken = stem.with_suffix(".in"), stem.with_suffix(".out")
    with open(given, "wb") as file:
        for pw, x in cases:
            file.write(_case(pw, x))
    _execute(program, given, taken, environment)
    answers, data, at = [], taken.read_bytes(), 0
    for pw, x in cases:
        raw, at = _result(data, at)
        y = torch.frombuffer(bytearray(raw), dtype=x.dtype).reshape(x.shape[0], pw.shape[0])
        raw, at = _result(data, at)
        answers.append(Answer(y, torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(pw.shape)))
    return answers


def run_bits(program: Path, bits: Tensor) -> tuple[Tensor, Tensor]:
    """bool [rows, length] -> its words, and the bits unpacked from them again."""
    rows, length = bits.shape
    given, taken = program.with_suffix(".bits"), program.with_suffix(".packed")
    given.write_bytes(np.array([1, rows, length], "<i8").tobytes() + _array(bits))
    _execute(program, given, taken, {})
    data = taken.read_bytes()
    words, at = _result(data, 0)
    back, _ = _result(data, at)
    return (
        torch.from_numpy(np.frombuffer(words, "<i4").reshape(rows, -1).copy()),
        torch.from_numpy(np.frombuffer(back, np.bool_).reshape(rows, length).copy()),
    )


@dataclass(frozen=True)
class Launch:
    """How the tensor-core kernel would be started: row tiles, splits, slices of the batch; bytes of shared memory."""

    grid: tuple[int, int, int]
    warps: int
    shared: int


def launch_of(
    library: Path,
    rows: int,
    cols: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    *,
    processors: int,
    shared_memory: int,
    major: int = 8,
) -> Launch:
    """For ARB-RC + CGB, block 128, on such a device. `library`: compiled with -shared and -DARB_SHIM_RECORD."""
    dll = ctypes.CDLL(str(library))
    dll.arb_cuda_linear_workspace.restype = ctypes.c_int64
    words, blocks = -(-cols // 64) * 2, -(-cols // 128)
    lengths = {"sign": rows * words, "group": rows * words, "second": 2, "row_scale": 6 * rows * blocks, "order": cols}
    lengths |= {"counts": blocks, "col_scale": 2 * cols, "col_scale2": 2}
    address = ctypes.c_void_p(1 << 20)  # the launchers look at sizes and addresses, never at what is there
    buffers = [_Buffer(address, lengths[name]) if name in lengths else _Buffer() for name in BUFFERS]
    half = TYPES[torch.float16]
    weight = ctypes.byref(Weight(rows, cols, 128, 2, 2, 2, 0, 0, half, half, *buffers))
    x_type, many = ctypes.c_int64(TYPES[dtype]), ctypes.c_int64(batch)
    message = ctypes.create_string_buffer(200)
    settings = {"SHIM_PROCESSORS": processors, "SHIM_SHARED_MEMORY": shared_memory, "SHIM_MAJOR": major}
    with mock.patch.dict(os.environ, **{name: str(value) for name, value in settings.items()}):
        space = ctypes.c_int64(dll.arb_cuda_linear_workspace(weight, x_type, many))
        operands = (weight, address, x_type, many, address, address, space, None)
        status = dll.arb_cuda_linear(*operands, message, ctypes.c_int64(len(message)))
    assert status == 0, message.value.decode()
    *grid, threads, shared = (ctypes.c_int64 * 5).in_dll(dll, "shim_launch")
    return Launch((grid[0], grid[1], grid[2]), threads // 32, shared)


def _execute(program: Path, given: Path, taken: Path, environment: dict[str, str]) -> None:
    # ThreadSanitizer has been seen to hang after its report, with a hundred threads still running.
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", **environment}
    try:
        done = subprocess.run(
            [str(program), str(given), str(taken)], env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode() if isinstance(error.stderr, bytes) else error.stderr or ""
        late = f"{said}\nno end within {TIME_LIMIT} seconds"
        raise subprocess.CalledProcessError(-1, str(program), error.stdout, late) from error
    if "ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("this ThreadSanitizer cannot run under this kernel's address-space randomization")
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, str(program), done.stdout, done.stderr)


def _case(pw: PackedWeight, x: Tensor) -> bytes:
    *parts, sizes = packed_args(pw)
    scale = pw.row_scale.dtype if pw.row_base is None else pw.row_base.dtype
    head = [0, *sizes, TYPES[scale], TYPES[pw.row_scale.dtype]]
    body = b"".join(_array(t) for t in parts)
    return np.array(head, "<i8").tobytes() + body + np.array([TYPES[x.dtype], x.shape[0]], "<i8").tobytes() + _array(x)


def _array(t: Tensor | None) -> bytes:
    if t is None:
        return np.array([-1, 0], "<i8").tobytes()
    flat = t.contiguous().reshape(-1)
    raw = flat.view(torch.int16) if t.dtype is torch.bfloat16 else flat
    return np.array([t.numel(), t.element_size()], "<i8").tobytes() + raw.numpy().tobytes()


def _result(data: bytes, at: int) -> tuple[bytes, int]:
    status, message, size = np.frombuffer(data, "<i8", 3, at).tolist()
    begin = at + 24 + message
    assert status == 0, data[at + 24 : begin].decode()
    return data[begin : begin + size], begin + size
