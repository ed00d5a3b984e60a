"""The door to the compiled extension: bit packing, which instruction set runs, and how activations are rounded.

The extension takes addresses and sizes; this module, cpu.py and table.py are the only ones that pass them. The plain
versions of `pack_bits` and `unpack_bits` are in packed.py.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import InputError


class _Missing:
    """Stands in for an extension that is not there, so that `python -m arbllm_kernels.info` can still say so."""

    def __init__(self, error: ImportError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise ImportError(
            f"the native extension of arbllm_kernels cannot be loaded ({self._error}): build it with `pip install .` "
            "or, in a checkout, `pip install -e . --no-build-isolation` (needs a C++20 compiler)"
        )


def _load() -> Any:
    try:
        return importlib.import_module("._native", __package__)
    except ImportError as error:
        return _Missing(error)


extension: Any = _load()


def available_isas() -> dict[str, bool]:
    """The instruction sets of this build, best first, and whether this machine can run them."""
    return dict(extension.isas())


def active_isa() -> str:
    """The instruction set that the next call uses. Raises InputError if ARBLLM_FORCE_ISA names one it cannot."""
    return str(extension.active_isa())


def set_isa(name: str | None) -> None:
    """Run `name` in this process from now on; None goes back to ARBLLM_FORCE_ISA or the best one.

    Raises:
        InputError: the name is unknown or this machine cannot run it.
    """
    extension.set_isa(name)


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """`set_isa(name)` for a with-block."""
    before = active_isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


# ---- activations

ACTIVATIONS = ("exact", "int8")
_activations: str | None = None  # None: not asked for yet


def set_activations(name: str | None) -> None:
    """Choose how batches for which W is not dequantized (cpu.dense_batches) are multiplied on the CPU from now on.

    "exact" (the default) is as good as float32 for x in float32. In whole numbers (by line, and in copies) x in
    bfloat16 is rounded to 16 bits per block of columns or part of one, x in float16 to 16 bits per part of up to 128
    columns in copies, and else to 23: a y in which large terms cancel can be off by more than its last bit; the norm of
    the product is not. "int8" rounds each row of x to 8 bits per block or part of one, which is faster and adds an
    error of about 1 % of the product's norm (docs/cpu-kernels.md). Layouts that are not multiplied by line, as the
    paper's, have int8 in copies alone (set_repack); without one they are multiplied exactly, with a warning.

    Longer batches meet a dequantized W in float32, whatever is chosen here; but x in bfloat16, where the processor is
    faster in it (onednn.bfloat16_products), a W that is rounded to bfloat16, as in a dense model of that dtype.

    Args:
        name: "exact", "int8", or None to go back to the environment variable ARBLLM_ACTIVATIONS or the default.

    Raises:
        InputError: unknown name, here or in the environment.
    """
    global _activations
    _activations = _known("set_activations", name) if name is not None else None


def activations() -> str:
    """What is in force: "exact" or "int8". Raises InputError if ARBLLM_ACTIVATIONS names something else."""
    global _activations
    if _activations is None:
        _activations = _known("ARBLLM_ACTIVATIONS", os.environ.get("ARBLLM_ACTIVATIONS") or ACTIVATIONS[0])
    return _activations


def _known(source: str, name: str) -> str:
    if name not in ACTIVATIONS:
        raise InputError(f"{source}: activations {name!r}; must be one of {', '.join(ACTIVATIONS)}")
    return name


@contextmanager
def forced_activations(name: str) -> Iterator[None]:
    """`set_activations(name)` for a with-block."""
    before = activations()
    set_activations(name)
    try:
        yield
    finally:
        set_activations(before)


# ---- repacked copies

_repack: bool | None = None  # None: not asked for yet


def set_repack(on: bool | None) -> None:
    """Choose whether weights are multiplied with a few rows of x in a copy made for that.

    That is four times as fast for x in float32 and six times in bfloat16 (4096 x 4096, one row, AVX-512 VBMI), and
    without it the paper's layouts have no int8. A weight's first short product makes the copy, in the time of 20 to 50
    products. It takes 0.9 to 1.2 times the memory of the weight, with four groups up to 1.5, and more where blocks are
    narrow or rows few. Where the weight maps a file, as `arbllm_kernels.load` gives it, its own pages are given back
    for that, until something else reads them, such as a long prompt; weights that were just quantized stay in memory
    beside their copies, and a copy until the next product after they are turned off. What is multiplied by line, as the
    presets `best` and `compact`, is not copied. docs/cpu-kernels.md, "In tiles".

    A copy is made again when torch counts that one of the tensors was written to. It does not count what goes through
    `.data` or numpy, nor tensors made under torch.inference_mode: call `ARBLinear.refresh` after that.

    Args:
        on: None goes back to the environment variable ARBLLM_REPACK ("1" or "0"), or to copies.

    Raises:
        InputError: `on` is something else.
    """
    if on is not None and not isinstance(on, bool):
        raise InputError(f"set_repack: {on!r}; must be True, False or None")
    global _repack
    _repack = on


def repack() -> bool:
    """What is in force. Raises InputError if ARBLLM_REPACK is something else than 0 or 1."""
    global _repack
    if _repack is None:
        value = os.environ.get("ARBLLM_REPACK") or "1"
        if value not in ("0", "1"):
            raise InputError(f"ARBLLM_REPACK: {value!r}; must be 0 or 1")
        _repack = value == "1"
    return _repack


@contextmanager
def forced_repack(on: bool) -> Iterator[None]:
    """`set_repack(on)` for a with-block."""
    before = repack()
    set_repack(on)
    try:
        yield
    finally:
        set_repack(before)


# ---- bit packing


def pack_bits(bits: Tensor) -> Tensor:
    """bool [..., L] -> int32 [..., W], as `packed.pack_bits`, for CPU tensors."""
    _check("pack_bits", bits, torch.bool)
    bits = bits.contiguous()
    length = bits.shape[-1]
    words = torch.empty(*bits.shape[:-1], extension.words_for(length), dtype=torch.int32)
    if bits.numel():
        extension.pack_bits(bits.data_ptr(), bits.numel() // length, length, words.data_ptr())
    return words


def unpack_bits(words: Tensor, length: int) -> Tensor:
    """int32 [..., W] -> bool [..., length], as `packed.unpack_bits`, for CPU tensors."""
    _check("unpack_bits", words, torch.int32)
    if length < 0 or words.shape[-1] != extension.words_for(length):
        raise InputError(
            f"unpack_bits: {words.shape[-1]} words per row do not hold {length} bits padded to whole 64-bit words"
        )
    words = words.contiguous()
    bits = torch.empty(*words.shape[:-1], length, dtype=torch.bool)
    if bits.numel():
        extension.unpack_bits(words.data_ptr(), bits.numel() // length, length, bits.data_ptr())
    return bits


def _check(name: str, t: Tensor, dtype: torch.dtype) -> None:
    if t.dtype != dtype or t.device.type != "cpu" or t.dim() == 0:
        raise InputError(f"{name}: {t.dtype} {list(t.shape)} on {t.device}, must be {dtype} [..., L] on the CPU")
