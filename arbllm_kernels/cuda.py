"""The door to the CUDA kernels (csrc/cuda, csrc/include/arb/cuda.h): addresses and a stream in, messages out.

The shared object is loaded with ctypes on first use; it needs no torch headers and loads without a driver. gpu.py
decides when these functions run. n = rows, m = cols of the weight. Their oracle is PackedWeight.dequantize.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .errors import InputError

PATH = Path(__file__).with_name("_cuda.so")
MIN_CAPABILITY = (8, 0)  # bfloat16 tensor cores, asynchronous copies
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}  # arb_cuda_type
SIZES = (
    *("rows", "cols", "block_size", "groups", "salient_groups", "salient_order", "exponent", "shared_columns"),
    *("scale_type", "row_scale_type"),
)
BUFFERS = ("sign", "group", "second", "row_scale", "row_base", "mean", "col_scale", "col_scale2", "order", "counts")
_MESSAGE_BYTES = 300
_KEPT_BATCH = 8  # rows of x; more of them come in any number, and the question costs them little


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_int64))


class Weight(ctypes.Structure):
    """arb_cuda_weight. The caller keeps the tensors alive while it is used."""

    _fields_ = (*((name, ctypes.c_int64) for name in SIZES), *((name, _Buffer) for name in BUFFERS))

    @classmethod
    def of(cls, *args: Any) -> Weight:
        """From the arguments of the ops (ops.packed_args). Raises InputError for a part of wrong dtype or device."""
        parts, sizes = dict(zip(BUFFERS, args, strict=False)), args[-1]
        base, row = parts["row_base"], parts["row_scale"].dtype
        scale = row if base is None else base.dtype
        allowed = {"row_scale": row, **dict.fromkeys(("row_base", "mean", "col_scale", "col_scale2"), scale)}
        device = parts["sign"].device
        buffers = []
        for name, t in parts.items():
            dtype = allowed.get(name, torch.int32)
            if t is not None and (t.dtype != dtype or t.device != device or not t.is_contiguous()):
                raise InputError(
                    f"packed weight: {name} is {t.dtype} {list(t.shape)} on {t.device}; must be contiguous {dtype} on "
                    f"{device}. PackedWeight.validate() checks the parts"
                )
            buffers.append(_Buffer() if t is None else _Buffer(t.data_ptr(), t.numel()))
        if scale not in (torch.float16, torch.float32) or row not in (scale, torch.uint8):
            raise InputError(f"packed weight: row scales of {row} with other scales of {scale}")
        return cls(*sizes, TYPES[scale], TYPES[row], *buffers)


class _Kept:
    """What a product needs of a weight besides its tensors: making it anew takes longer than most products.

    It is kept as long as the sign plane lives, and made again as soon as a part is another tensor or lies elsewhere.
    """

    def __init__(self, args: tuple[Any, ...], addresses: list[int]) -> None:
        self.addresses, self.others, self.sizes = addresses, args[1:-1], list(args[-1])
        self.weight = Weight.of(*args)
        self.pointer = ctypes.pointer(self.weight)
        self.workspaces: dict[tuple[int, int], int] = {}  # bytes by type of x and batch

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> _Kept:
        addresses = [t.data_ptr() for t in args[:-1] if t is not None]
        kept = _by_sign_plane.get(args[0])
        if (
            kept is None
            or kept.addresses != addresses
            or kept.sizes != list(args[-1])
            or not all(map(operator.is_, kept.others, args[1:-1]))
        ):
            kept = _by_sign_plane[args[0]] = cls(args, addresses)
        return kept


_by_sign_plane: MutableMapping[Tensor, _Kept] = WeakTensorKeyDictionary()


class Library:
    """The functions of arb/cuda.h in a shared object; `stream` is a cudaStream_t as an integer.

    Raises:
        OSError: the file cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._dll = ctypes.CDLL(str(path))
        number, address = ctypes.c_int64, ctypes.c_void_p
        message = (ctypes.c_char_p, number)
        weight = ctypes.POINTER(Weight)
        bits = (address, number, number, address, address, *message)
        for name, result, arguments in (
            ("linear_workspace", number, (weight, number, number)),
            ("is_fast", ctypes.c_int, (weight,)),
            (
                "linear",
                ctypes.c_int,
                (weight, address, number, number, address, address, number, address, *message),
            ),
            ("dequantize", ctypes.c_int, (weight, address, address, *message)),
            ("pack_bits", ctypes.c_int, bits),
            ("unpack_bits", ctypes.c_int, bits),
        ):
            function = getattr(self._dll, f"arb_cuda_{name}")
            function.restype, function.argtypes = result, arguments
        self._message = threading.local()

    def linear(self, x: Tensor, args: tuple[Any, ...], stream: int) -> Tensor:
        """x [..., m] of fp32, fp16 or bf16 -> [..., n] of the same dtype; sums in float32."""
        kept, shape, x_type = _Kept.of(args), x.shape, TYPES.get(x.dtype)
        rows, cols = kept.sizes[:2]
        if x_type is None or x_type == TYPES[torch.uint8] or shape[-1] != cols:
            raise InputError(f"x {list(shape)} of {x.dtype} times a packed weight [{rows}, {cols}]")
        if x.device != args[0].device:
            raise InputError(f"x is on {x.device}, the packed weight on {args[0].device}: move one of them")
        flat = x.contiguous()
        batch = flat.numel() // cols
        y = flat.new_empty(*shape[:-1], rows)
        key = x_type, batch
        if (needed := kept.workspaces.get(key)) is None:
            # -1 is left to the call itself, which says why.
            needed = self._dll.arb_cuda_linear_workspace(kept.pointer, *key)
            if batch <= _KEPT_BATCH:
                kept.workspaces[key] = needed
        # From torch's allocator, which knows streams and graphs.
        space = flat.new_empty(max(needed, 0), dtype=torch.uint8)
        self._call(
            *("linear", kept.pointer, flat.data_ptr(), x_type, batch, y.data_ptr()),
            *(space.data_ptr(), needed, stream),
        )
        return y

    def dequantize(self, args: tuple[Any, ...], stream: int) -> Tensor:
        """The dense weight, float32 [n, m], in column order; equal bit for bit to PackedWeight.dequantize."""
        weight = Weight.of(*args)
        dense = torch.empty(weight.rows, weight.cols, dtype=torch.float32, device=args[0].device)
        self._call("dequantize", ctypes.pointer(weight), dense.data_ptr(), stream)
        return dense

    def pack_bits(self, bits: Tensor, stream: int) -> Tensor:
        """bool [..., L] -> int32 [..., W], as packed.pack_bits."""
        _expect("pack_bits", bits, torch.bool)
        length = bits.shape[-1]
        words = torch.empty(*bits.shape[:-1], -(-length // 64) * 2, dtype=torch.int32, device=bits.device)
        self._bits("pack_bits", bits.contiguous(), length, words, stream)
        return words

    def unpack_bits(self, words: Tensor, length: int, stream: int) -> Tensor:
        """int32 [..., W] -> bool [..., length], as packed.unpack_bits."""
        _expect("unpack_bits", words, torch.int32)
        if length < 0 or words.shape[-1] != -(-length // 64) * 2:
            raise InputError(f"unpack_bits: {words.shape[-1]} words do not hold {length} bits in whole 64-bit words")
        bits = torch.empty(*words.shape[:-1], length, dtype=torch.bool, device=words.device)
        self._bits("unpack_bits", words.contiguous(), length, bits, stream)
        return bits

    def is_fast(self, args: tuple[Any, ...]) -> bool:
        """Whether the tensor-core kernel takes this weight; otherwise the plain one does."""
        return bool(self._dll.arb_cuda_is_fast(ctypes.pointer(Weight.of(*args))) == 1)

    def _bits(self, name: str, source: Tensor, length: int, target: Tensor, stream: int) -> None:
        rows = source.numel() // max(source.shape[-1], 1)
        self._call(name, source.data_ptr(), rows, length, target.data_ptr(), stream)

    def _call(self, name: str, *arguments: Any) -> None:
        message = self._message.__dict__.get("buffer")
        if message is None:
            message = self._message.buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = getattr(self._dll, f"arb_cuda_{name}")(*arguments, message, _MESSAGE_BYTES)
        if status == 1:
            raise InputError(message.value.decode())
        if status != 0:
            raise RuntimeError(message.value.decode())


@functools.cache
def unavailable() -> str | None:
    """Why these kernels cannot run here, as one sentence; None where they can."""
    if not PATH.exists():
        return "this build has no CUDA kernels: install nvcc and build again with ARBLLM_CUDA=1"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        library()
    except OSError as error:
        return f"{PATH.name} cannot be loaded: {error}"
    return None


def available(device: torch.device | None = None) -> bool:
    """Whether the kernels are built, load, and run on the device (None: the current one)."""
    if unavailable() is not None:
        return False
    return _runs_on(torch.device("cuda", torch.cuda.current_device()) if device is None else device)


@functools.cache
def _runs_on(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


@functools.cache
def library() -> Library:
    """The built shared object. Raises OSError where it is missing."""
    return Library(PATH)


def linear(x: Tensor, *args: Any) -> Tensor:
    """arb::linear on a CUDA device, on torch's current stream. Raises InputError as the op does."""
    with torch.cuda.device(x.device):
        return library().linear(x, args, torch.cuda.current_stream().cuda_stream)


def is_fast_layout(*args: Any) -> bool:
    """What Library.is_fast says where parts are aligned, without a call into it: for every eager product."""
    mean, col_scale, (_, cols, block_size, groups, *_) = args[5], args[6], args[-1]
    units = block_size % 128 == 0 or block_size >= cols
    return units and cols % 2 == 0 and groups <= 2 and (mean is None or col_scale is None)


def dequantize(*args: Any) -> Tensor:
    """arb::dequantize on a CUDA device, on torch's current stream."""
    with torch.cuda.device(args[0].device):
        return library().dequantize(args, torch.cuda.current_stream().cuda_stream)


def _expect(name: str, t: Tensor, dtype: torch.dtype) -> None:
    if t.dtype != dtype or t.dim() == 0:
        raise InputError(f"{name}: {t.dtype} {list(t.shape)}, must be {dtype} [..., L]")
