"""torch.library ops on packed weights: arb::linear, arb::linear_input_grad, arb::dequantize.

The ops take the parts of a PackedWeight as flat arguments (see `packed_args`), so that torch.compile, autograd and
opcheck see plain tensors. n = rows, m = cols of the weight W. Their oracle is PackedWeight.dequantize.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import gpu
from .errors import InputError
from .native import activations, active_isa, extension
from .packed import Layout, PackedWeight

# From some number of rows of x on, dequantizing tiles of W and calling BLAS mostly beats the packed kernels, whose work
# grows with every row; `dense_batches` says from how many.
DENSE_BATCH = 16  # kernels by blending, and 8-bit tables
NEVER = 1 << 62
DOT_PRODUCTS = ("avx512vbmi", "avx512vnni", "avxvnni", "neondot")  # instruction sets with one that adds four products
# By (way, dot products): for one, two and three digits of x, where W is narrow and where it is wide.
DENSE_BATCHES = {
    ("line", True): ((96, 28, 16), (NEVER, NEVER, 192)),
    ("line", False): ((12, 6, 5), (44, 14, 10)),
    ("sums", True): ((12, 8, 6), (80, 40, 28)),
    ("sums", False): ((7, 5, 4), (32, 20, 12)),
    ("four groups", True): ((3, 2, 2), (12, 9, 6)),
    ("four groups", False): ((3, 2, 2), (9, 6, 5)),
    ("repacked", True): ((192, 40, 20), (NEVER, 192, 64)),  # here: lookups of 64 bytes
    ("repacked", False): ((24, 14, 9), (80, 30, 20)),
}
NARROW = 2048  # columns
PERMUTE = 6  # what a permuted entry of x costs, in entries of W
TILE_WEIGHTS = 1 << 22  # weights per dequantized tile, 16 MB of float32: 2 and 4 times as many are slower, half as well

PACKED_SCHEMA = (
    "Tensor sign, Tensor group, Tensor second, Tensor row_scale, Tensor? row_base, Tensor? mean, Tensor? col_scale, "
    "Tensor? col_scale2, Tensor order, Tensor counts, int[] sizes"
)
MaybeTensor = Tensor | None
PackedArgs = tuple[
    Tensor, Tensor, Tensor, Tensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, Tensor, Tensor, Sequence[int]
]


def layout_sizes(layout: Layout) -> list[int]:
    """The `sizes` argument of the ops."""
    return [
        layout.rows,
        layout.cols,
        layout.block_size,
        layout.groups,
        layout.salient_groups,
        layout.salient_order,
        layout.exponent,
        int(layout.shared_columns),
    ]


def packed_args(pw: PackedWeight) -> PackedArgs:
    """A PackedWeight as the trailing arguments of every op: its parts, column order, salient counts and sizes."""
    return (
        pw.sign,
        pw.group,
        pw.second,
        pw.row_scale,
        pw.row_base,
        pw.mean,
        pw.col_scale,
        pw.col_scale2,
        pw.order,
        pw.salient_counts,
        layout_sizes(pw.layout),
    )


# ---- CPU

ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # what x may consist of
VIEWED = ("sign", "group", "second", "row_scale", "row_base", "mean", "col_scale", "col_scale2", "order", "counts")


def view(args: PackedArgs) -> Any:
    """The native view of a packed weight. The caller keeps the tensors alive while it is used.

    Raises InputError for a part whose memory is not what the native code takes it for. That code checks the sizes.
    """
    row_scale, word = args[3].dtype, torch.int32
    whole = row_scale is torch.uint8 and args[4] is not None
    scale = args[4].dtype if whole and args[4] is not None else row_scale
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


def native_weight(args: PackedArgs) -> Any:
    """The native weight behind `args`, with its plan; multiplies by `multiply`. The caller keeps the tensors alive."""
    return extension.Weight(view(args))


def dense_batches(packed: Any, cols: int, repacked: bool = False) -> tuple[int, int, int]:
    """From how many rows of x on a native view of so many columns is dequantized: for one, two and three digits of x.

    Measured for 576 and 4,096 columns with avx512vbmi, avx512 and avx2, `bench/gemv.py --threshold`; where there is no
    dot product, between what is best for the last two.
    """
    if repacked and not packed.covers_line:
        return DENSE_BATCHES["repacked", active_isa() == "avx512vbmi"][cols >= NARROW]
    if not packed.covers_line and not packed.covers_sums:
        return DENSE_BATCH, DENSE_BATCH, DENSE_BATCH
    kind = "line" if packed.covers_line else "four groups" if packed.groups == 4 else "sums"
    return DENSE_BATCHES[kind, active_isa() in DOT_PRODUCTS][cols >= NARROW]


def element(dtype: torch.dtype) -> Any:
    """Of x, as the extension names it: float32 for what it does not take."""
    return getattr(extension.Element, ELEMENTS.get(dtype, "fp32"))


def way() -> Any:
    """The activations in force, as the extension names them."""
    return getattr(extension.Activations, activations())


def multiply(weight: Any, x: Tensor, y: Tensor, batch: int) -> None:
    """y [batch, n] = x [batch, m] W^T, contiguous, both of one of ELEMENTS, as native.set_activations says."""
    if activations() == "int8" and not weight.covers_int8:
        warnings.warn(NOT_COVERED, stacklevel=3)
    weight.gemm(x.data_ptr(), element(x.dtype), batch, y.data_ptr(), torch.get_num_threads(), way())


NOT_COVERED = (
    "int8 activations were asked for, but a packed weight has a layout without an int8 kernel (several blocks of "
    "less than 64 columns): it is multiplied exactly. Repacked weights have one (ARBLLM_REPACK=1, native.set_repack)"
)


def _unreadable(args: PackedArgs, i: int, dtype: str) -> str:
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
    step = max(1, TILE_WEIGHTS // cols)
    step -= step % 64 if step > 64 else 0  # BLAS works in blocks of rows
    return [(r, min(r + step, rows)) for r in range(0, rows, step)]


def _tiles(packed: Any, rows: int, cols: int, stored: bool, threads: int) -> Iterator[tuple[int, int, Tensor]]:
    """First row, last and rows of W, float32, tile by tile, with columns in their own or in storage order.

    All are made in the same memory: new memory costs twice as much time as what is written to it.
    """
    buffer = torch.empty(tiles(rows, cols)[0][1], cols, dtype=torch.float32, device="cpu")
    for first, last in tiles(rows, cols):
        tile = buffer[: last - first]
        extension.dequantize(packed, first, last, stored, tile.data_ptr(), threads)
        yield first, last, tile


def _linear_cpu(x: Tensor, *args: Any) -> Tensor:
    cols, packed = args[-1][1], view(args)
    digits = packed.digits_of(element(x.dtype), way())
    if x.numel() >= dense_batches(packed, cols)[digits - 1] * cols:
        return dense_product(x, args, packed)
    flat = _as_rows(x, cols, x.dtype if x.dtype in ELEMENTS else torch.float32)
    y = torch.empty(*x.shape[:-1], args[-1][0], dtype=flat.dtype, device="cpu")
    multiply(extension.Weight(packed), flat, y, flat.shape[0])
    return _as(x.dtype, y)


def dense_product(x: Tensor, args: Sequence[Any], packed: Any) -> Tensor:
    """x [..., m] times the transposed weight behind the native view `packed` of `args`, dequantized tile by tile."""
    rows, cols = args[-1][0], args[-1][1]
    _check_columns(x, cols)
    # Either the columns of x are permuted or those of W: whichever is less work.
    stored = PERMUTE * x.numel() < rows * cols
    single = _as(torch.float32, x)
    single = single.index_select(-1, args[-3]) if stored else single
    threads = torch.get_num_threads()
    # In its final shape from the start: a view of a temporary could not be modified in place under autograd.
    y = torch.empty(*x.shape[:-1], rows, dtype=torch.float32, device="cpu")
    flat, out = single.reshape(-1, cols), y.view(-1, rows)  # with out=, autocast leaves products alone
    if rows * cols <= TILE_WEIGHTS:  # one tile: a small layer, in which every call to torch counts
        W = torch.empty(rows, cols, dtype=torch.float32, device="cpu")
        extension.dequantize(packed, 0, rows, stored, W.data_ptr(), threads)
        torch.mm(flat, W.t(), out=out)
        return _as(x.dtype, y)
    for first, last, tile in _tiles(packed, rows, cols, stored, threads):
        torch.mm(flat, tile.t(), out=out[:, first:last])
    return _as(x.dtype, y)


def _linear_input_grad_cpu(dy: Tensor, *args: Any) -> Tensor:
    rows, cols = args[-1][0], args[-1][1]
    packed, threads = view(args), torch.get_num_threads()
    flat = _as_rows(dy, rows, torch.float32)
    stored = torch.zeros(flat.shape[0], cols, dtype=torch.float32, device="cpu")
    for first, last, tile in _tiles(packed, rows, cols, True, threads):
        stored.addmm_(flat[:, first:last], tile)
    dx = torch.empty(*dy.shape[:-1], cols, dtype=torch.float32, device="cpu")
    dx.view(flat.shape[0], cols).index_copy_(1, args[-3].long(), stored)
    return dx.to(dy.dtype)


def _dequantize_cpu(*args: Any) -> Tensor:
    rows, cols = args[-1][0], args[-1][1]
    dense = torch.empty(rows, cols, dtype=torch.float32, device="cpu")
    extension.dequantize(view(args), 0, rows, False, dense.data_ptr(), torch.get_num_threads())
    return dense


# The one table of implementations, by device type: (linear, linear_input_grad, dequantize).
IMPLEMENTATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cpu": (_linear_cpu, _linear_input_grad_cpu, _dequantize_cpu),
    "cuda": (gpu.linear, gpu.linear_input_grad, gpu.dequantize),
}


def check_device(what: str, device: torch.device) -> None:
    """Raise InputError where no kernel exists for the device. The meta device passes: nothing is computed there."""
    if device.type not in IMPLEMENTATIONS and device.type != "meta":
        raise InputError(
            f"{what}: no kernel for device {device} in this build, which has kernels for: "
            f"{', '.join(IMPLEMENTATIONS)}. Move the model and its inputs to the CPU, or use PackedWeight.dequantize() "
            "with torch.nn.functional.linear"
        )


# ---- fake implementations: shapes and dtypes only


def _check_one_device(device: torch.device, args: Sequence[Any]) -> None:
    """One meta tensor among CPU tensors brings the call here, where nothing would be computed."""
    for name, t in zip(VIEWED, args, strict=False):
        if t is not None and t.device != device:
            raise InputError(f"packed weight: {name} is on {t.device}, other tensors of the call on {device}; move it")


def _linear_fake(x: Tensor, *args: Any) -> Tensor:
    _check_one_device(x.device, args)
    return x.new_empty(*x.shape[:-1], args[-1][0])


def _linear_input_grad_fake(dy: Tensor, *args: Any) -> Tensor:
    _check_one_device(dy.device, args)
    return dy.new_empty(*dy.shape[:-1], args[-1][1])


def _dequantize_fake(sign: Tensor, *args: Any) -> Tensor:
    _check_one_device(sign.device, (sign, *args))
    return sign.new_empty(args[-1][0], args[-1][1], dtype=torch.float32)


# ---- autograd: both are linear in their first argument, and each is the gradient of the other


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:-1])
    ctx.sizes = inputs[-1]


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = torch.ops.arb.linear_input_grad(dy, *ctx.saved_tensors, ctx.sizes) if ctx.needs_input_grad[0] else None
    return (dx, *[None] * 11)


def _linear_input_grad_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    ddy = torch.ops.arb.linear(ddx, *ctx.saved_tensors, ctx.sizes) if ctx.needs_input_grad[0] else None
    return (ddy, *[None] * 11)


# ---- registration: Library.define/impl; bench/gemv.py --overhead compares its cost per call with custom_op's

_LIBRARY = torch.library.Library("arb", "DEF")
_FAKES = {"linear": _linear_fake, "linear_input_grad": _linear_input_grad_fake, "dequantize": _dequantize_fake}
_UNSUPPORTED_KEYS = ("MPS", "XPU")


def _unsupported(name: str) -> Callable[..., Tensor]:
    def refuse(*args: Any) -> Tensor:
        check_device(f"arb::{name}", args[0].device)
        raise InputError(f"arb::{name}: {args[0].device} tensors reached a kernel of another device")

    return refuse


def _register() -> None:
    _LIBRARY.define(f"linear(Tensor x, {PACKED_SCHEMA}) -> Tensor")
    _LIBRARY.define(f"linear_input_grad(Tensor dy, {PACKED_SCHEMA}) -> Tensor")
    _LIBRARY.define(f"dequantize({PACKED_SCHEMA}) -> Tensor")
    for position, (name, fake) in enumerate(_FAKES.items()):
        for device, functions in IMPLEMENTATIONS.items():
            _LIBRARY.impl(name, functions[position], device.upper())
        for key in _UNSUPPORTED_KEYS:
            _LIBRARY.impl(name, _unsupported(name), key)
        torch.library.register_fake(f"arb::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd("arb::linear", _linear_backward, setup_context=_save_packed, lib=_LIBRARY)
    torch.library.register_autograd(
        "arb::linear_input_grad", _linear_input_grad_backward, setup_context=_save_packed, lib=_LIBRARY
    )


_register()

# The overloads themselves: looking one up through torch.ops.arb costs as much as the dispatch.
LINEAR: Any = torch.ops.arb.linear.default
DEQUANTIZE: Any = torch.ops.arb.dequantize.default
