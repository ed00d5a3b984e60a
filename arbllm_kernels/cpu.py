"""arb::linear, arb::linear_input_grad and arb::dequantize on the CPU. n = rows, m = cols of the weight W.

A weight's native side (extension.Bound, python/direct_bindings.cpp) is made by its first product and kept with its
column order, which belongs to this weight alone: plans, and the repacked copy where native.repack() is on. It is made
again as soon as one of the weight's tensors lies elsewhere or its sizes are others. Content may change in place, but
for `order` and `counts`, which are read once; a repacked copy is made again after that. Long batches are multiplied by
dequantized tiles of W.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import onednn
from .errors import InputError
from .native import activations, active_isa, extension, repack

# From some number of rows of x on, dequantizing tiles of W and calling BLAS mostly beats the packed kernels, whose work
# grows with every row; `dense_batches` says from how many.
DENSE_BATCH = 16  # 8-bit tables
NEVER = 1 << 62
DOT_PRODUCTS = ("avx512vbmi", "avx512vnni", "avxvnni", "neondot")  # instruction sets with one that adds four products
# By (way, dot products, what multiplies W): for one, two and three digits of x, where W is narrow and where it is wide.
DENSE_BATCHES = {
    ("line", True, "mkl"): ((96, 28, 16), (NEVER, NEVER, 192)),
    ("line", True, "onednn"): ((192, 28, 16), (NEVER, NEVER, 160)),
    ("line", True, "bfloat16"): ((80, 28, 28), (NEVER, 80, 80)),  # x in bfloat16 never has three digits
    ("line", False, "mkl"): ((12, 6, 5), (44, 14, 10)),
    ("repacked", True, "mkl"): ((192, 40, 20), (NEVER, 192, 64)),  # "dot products" here: lookups of 64 bytes
    ("repacked", True, "onednn"): ((512, 64, 32), (NEVER, 192, 64)),
    ("repacked", True, "bfloat16"): ((96, 48, 48), (192, 48, 48)),
    ("repacked", False, "mkl"): ((24, 14, 9), (80, 30, 20)),
    ("blending", True, "mkl"): ((5, 5, 5), (5, 5, 5)),  # here: four groups
    ("blending", False, "mkl"): ((9, 9, 9), (13, 13, 13)),
}
NARROW = 2048  # columns
PERMUTE = 6  # what a permuted entry of x costs, in entries of W
# Weights per dequantized tile, 16 MB of float32: 2 and 4 times as many are slower, half as well. In bfloat16 none is
# best on one thread and on two.
TILE_WEIGHTS = 1 << 22


ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # what x may consist of
VIEWED = ("sign", "group", "second", "row_scale", "row_base", "mean", "col_scale", "col_scale2", "order", "counts")
ORDER = VIEWED.index("order")


def view(args: Sequence[Any]) -> Any:
    """The native view of a packed weight. The caller keeps the tensors alive while it is used.

    Raises InputError for a part whose memory is not what the native code takes it for. That code checks the sizes.
    """
    row_scale, word = args[3].dtype, torch.int32
    whole = row_scale is torch.uint8 and args[4] is not None
    scale = args[4].dtype if whole else row_scale
    if scale is not torch.float16 and scale is not torch.float32:
        raise InputError(_unreadable(args, 4 if whole else 3, "float16 or float32"))
    flat = [*args[10], scale is torch.float16, whole]
    for i, dtype in enumerate((word, word, word, row_scale, scale, scale, scale, scale, word, word)):
        t: Any = args[i]
        if t is None:
            flat += (0, 0)
        elif t.dtype is dtype and t.is_cpu and t.is_contiguous():
            flat += (t.data_ptr(), t.numel())
        else:
            raise InputError(_unreadable(args, i, str(dtype)))
    return extension.PackedView(*flat)


def dense_batches(packed: Any, repacked: bool, dtype: torch.dtype) -> tuple[int, int, int]:
    """From how many rows of x of `dtype` on a native view is dequantized: for one, two and three digits of x.

    Measured for 576 and 4,096 columns, `bench/gemv.py --threshold`: with avx512vbmi, and where it has instructions that
    others lack between what is best for avx512 and avx2, then with MKL. By blending (`--stored`) between avx512vbmi and
    avx2.
    """
    if repacked and packed.gains_by_copy:
        way, dot_products = "repacked", active_isa() == "avx512vbmi"
    elif not packed.covers_line:
        way, dot_products = "blending", packed.groups == 4
    else:
        way, dot_products = "line", active_isa() in DOT_PRODUCTS
    rounded = dtype is torch.bfloat16 and onednn.bfloat16_products()
    dense = "bfloat16" if rounded else "onednn" if onednn.faster() else "mkl"
    found = DENSE_BATCHES.get((way, dot_products, dense)) or DENSE_BATCHES[way, dot_products, "mkl"]
    return found[packed.cols >= NARROW]


NOT_COVERED = (
    "int8 activations were asked for, but a packed weight's layout has a kernel in its copy alone, and copies are off "
    "(ARBLLM_REPACK=0 or native.set_repack): it is multiplied exactly"
)


def _unreadable(args: Sequence[Any], i: int, dtype: str) -> str:
    t: Any = args[i]
    order = "" if t.is_contiguous() else ", not contiguous"
    return (
        f"packed weight: {VIEWED[i]} is {t.dtype} {list(t.shape)} on {t.device}{order}; must be contiguous {dtype} on "
        "the CPU, the scales all of one dtype. Keep the parts as quantize_weight or load gave them; "
        "PackedWeight.validate() checks them"
    )


def _as_rows(x: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """x [..., columns] as contiguous [batch, columns] of `dtype`."""
    _check_columns(x, columns)
    return x.reshape(-1, columns).to(dtype).contiguous()


def _as(dtype: torch.dtype, t: Tensor) -> Tensor:
    return t if t.dtype is dtype else t.to(dtype)  # 10 us even where there is nothing to do, after a long product


def _check_columns(x: Tensor, columns: int) -> None:
    if x.shape[-1] != columns:
        raise InputError(f"packed weight times {list(x.shape)}: the last dimension must be {columns}")


def tiles(rows: int, cols: int) -> list[tuple[int, int]]:
    if rows * cols <= TILE_WEIGHTS:
        return [(0, rows)]
    step = max(1, TILE_WEIGHTS // cols)
    step -= step % 64 if step > 64 else 0  # BLAS works in blocks of rows
    return [(r, min(r + step, rows)) for r in range(0, rows, step)]


def _tiles(packed: Any, stored: bool, threads: int, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """First row, last and rows of W, tile by tile, with columns in their own or in storage order.

    All are made in the same memory: new memory costs twice as much time as what is written to it.
    """
    found, element = tiles(packed.rows, packed.cols), getattr(extension.Element, ELEMENTS[dtype])
    buffer = torch.empty(found[0][1], packed.cols, dtype=dtype, device="cpu")
    for first, last in found:
        tile = buffer[: last - first]
        extension.dequantize(packed, first, last, stored, element, tile.data_ptr(), threads)
        yield first, last, tile


KEPT = "_arb_native"  # attribute of a weight's column order: its extension.Bound
PLAIN = (Tensor, torch.nn.Parameter, type(None))  # what has memory of its own, or is not there


def product(x: Tensor, args: Sequence[Any], alone: bool) -> Tensor | None:
    """x [..., m] times the transposed weight behind `args`: [..., n] in the dtype of x, which is one of ELEMENTS.

    None where x is not contiguous, does not fit or, with `alone`, where anything but the product is wanted: gradients,
    tracing, modes, transforms, a weight of tensors that only stand for others.
    """
    order = args[ORDER]
    int8, threads, copies = activations() == "int8", torch.get_num_threads(), repack()
    bound = order.__dict__.get(KEPT)
    y = bound.product(x, args, int8, threads, copies, alone) if bound else NotImplemented
    while y is NotImplemented:  # more than once only while another thread writes to the weight
        if alone and (not args[0].is_cpu or any(type(t) not in PLAIN for t in args[:-1])):
            return None
        bound = order.__dict__[KEPT] = _bind(args, copies)
        y = bound.product(x, args, int8, threads, copies, alone)
    return y  # type: ignore[no-any-return]


def _bind(args: Sequence[Any], copies: bool) -> Any:
    packed = view(args)
    # Of the instruction set and the library in use now: another one later does not change when W is dequantized.
    limits = dense_batches(packed, copies, torch.float32), dense_batches(packed, copies, torch.bfloat16)
    return extension.Bound(tuple(args), packed, copies, limits, _warn, dense_product)


def _warn() -> None:
    """At the line that called the layer or function, past this package and torch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in (__package__, "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(NOT_COVERED, stacklevel=level)


def linear(x: Tensor, *args: Any) -> Tensor:
    """arb::linear."""
    _check_columns(x, args[-1][1])
    y = product(_as(x.dtype if x.dtype in ELEMENTS else torch.float32, x).contiguous(), args, False)
    assert y is not None, "contiguous and of the right size, x has a product"
    return _as(x.dtype, y)


def dense_product(x: Tensor, order: Tensor, packed: Any) -> Tensor:
    """x [..., m] times the transposed weight of the native view `packed`, dequantized tile by tile.

    In float32; where products in bfloat16 are faster, x in bfloat16 meets a W that is rounded to bfloat16.
    """
    rows, cols = packed.rows, packed.cols
    dtype = torch.bfloat16 if x.dtype is torch.bfloat16 and onednn.bfloat16_products() else torch.float32
    # Either the columns of x are permuted or those of W: whichever is less work.
    stored = PERMUTE * x.numel() < rows * cols
    # torch permutes float32 three times as fast as bfloat16.
    own = _as(torch.float32, x).index_select(-1, order) if stored else x
    flat, shape = _as(dtype, own).reshape(-1, cols), (*x.shape[:-1], rows)
    found = _tiles(packed, stored, torch.get_num_threads(), dtype)
    # Whatever is returned is no view, which could not be modified in place under autograd.
    if rows * cols <= TILE_WEIGHTS and onednn.faster():  # a small layer, in which every call to torch counts
        return _as(x.dtype, torch.ops.aten._unsafe_view.default(onednn.multiply(flat, next(found)[2]), shape))
    y = torch.empty(shape, dtype=dtype, device="cpu")
    out = y.view(-1, rows)
    for first, last, W in found:
        if onednn.faster():
            out[:, first:last] = onednn.multiply(flat, W)
        else:
            torch.mm(flat, W.t(), out=out[:, first:last])  # with out=, autocast leaves products alone
    return _as(x.dtype, y)


def linear_input_grad(dy: Tensor, *args: Any) -> Tensor:
    """arb::linear_input_grad, in float32 and with W as it is, also where `dense_product` rounds it."""
    rows, cols = args[-1][0], args[-1][1]
    packed, threads = view(args), torch.get_num_threads()
    flat = _as_rows(dy, rows, torch.float32)
    stored = torch.zeros(flat.shape[0], cols, dtype=torch.float32, device="cpu")
    for first, last, tile in _tiles(packed, True, threads, torch.float32):
        stored.addmm_(flat[:, first:last], tile)
    dx = torch.empty(*dy.shape[:-1], cols, dtype=torch.float32, device="cpu")
    dx.view(flat.shape[0], cols).index_copy_(1, args[ORDER].long(), stored)
    return dx.to(dy.dtype)


def dequantize(*args: Any) -> Tensor:
    """arb::dequantize."""
    rows, cols = args[-1][0], args[-1][1]
    dense = torch.empty(rows, cols, dtype=torch.float32, device="cpu")
    single, threads = extension.Element.fp32, torch.get_num_threads()
    extension.dequantize(view(args), 0, rows, False, single, dense.data_ptr(), threads)
    return dense
