"""The door to the compiled extension: bit packing, and which instruction set runs.

The extension takes addresses and sizes; this module and ops.py are the only ones that pass them. The plain versions of
`pack_bits` and `unpack_bits` are in packed.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

try:
    extension: Any = importlib.import_module("._native", __package__)
except ImportError as error:
    raise ImportError(
        f"the native extension of arbllm_kernels cannot be loaded ({error}): build it with `pip install .` or, in a "
        "checkout, `pip install -e . --no-build-isolation` (needs a C++20 compiler)"
    ) from error


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
