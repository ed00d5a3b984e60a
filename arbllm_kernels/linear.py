"""linear and ARBLinear: y = x W^T + bias with W a PackedWeight, in place of F.linear and nn.Linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cpu import ELEMENTS
from .direct import product
from .errors import InputError
from .ops import DEQUANTIZE, LINEAR, PackedArgs, check_device, layout_sizes, packed_args
from .packed import PARTS, Layout, PackedWeight

X_DTYPES = tuple(ELEMENTS)
DERIVED = ("order", "counts")


def linear(x: Tensor, pw: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x times the transposed packed weight, plus bias.

    Args:
        x: [..., m], float32, bfloat16 or float16. Gradients flow to x. On the CPU native.set_activations says how x
            is rounded, if at all.
        pw: packed [n, m] weight on the device of x.
        bias: [n], floating point, or None.

    Returns:
        [..., n] in the dtype of x.

    Raises:
        InputError: wrong type, last dimension, dtype or device; the message says which.
    """
    _check_packed("linear", pw)
    _check_bias("linear", bias, pw.layout.rows)
    args = packed_args(pw)
    y = product(x, args)
    if y is None:
        _check_input(x, pw.layout, pw.sign.device)
        y = LINEAR(x, *args)
    return _add_bias(y, bias)


class ARBLinear(nn.Module):
    """nn.Linear with a binarized weight, for inference; gradients flow to x only.

    The buffers are the parts of the PackedWeight under their own names. Their dtypes belong to the format, so
    `.half()`, `.to(dtype)` and the like convert the bias alone; `.to(device)` moves everything.

    Args:
        pw: the weight, used as it is (not copied), e.g. views of a memory-mapped file.
        bias: [n], floating point, or None; becomes a Parameter that requires no gradient.
    """

    layout: Layout
    bias: nn.Parameter | None

    def __init__(self, pw: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        _check_packed("ARBLinear", pw)
        _check_bias("ARBLinear", bias, pw.layout.rows)
        self.layout = pw.layout
        self._sizes = layout_sizes(pw.layout)
        parts = pw.tensors()
        for name in PARTS:
            self.register_buffer(name, parts.get(name))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        for name in DERIVED:
            self.register_buffer(name, None, persistent=False)
        self.refresh()

    @classmethod
    def empty(
        cls,
        layout: Layout,
        salient_columns: int,
        *,
        mean: bool,
        col_scale: bool,
        scale_dtype: torch.dtype = torch.float16,
        coded: bool = False,
        ordered: bool = False,
        bias_dtype: torch.dtype | None = None,
        device: torch.device | str = "meta",
    ) -> ARBLinear:
        """A layer of the right shapes and unset content, to be filled by load_state_dict (`assign=True` on meta).

        `salient_columns` is C of packed.py; `coded` means uint8 row scales with a row base, `ordered` an explicit
        column order; `bias_dtype` None means no bias.
        """

        def words(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        def scales(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=scale_dtype, device=device)

        lay, second_scales = layout, col_scale and layout.salient_order == 2 and not layout.shared_columns
        row_scales = (lay.rows, lay.blocks, lay.scales_per_block)
        pw = PackedWeight(
            layout=lay,
            sign=words(lay.rows, lay.words),
            group=words(lay.rows, lay.group_bits, lay.words),
            second=words(lay.second_words(salient_columns)),
            salient=words(lay.words),
            row_scale=torch.zeros(row_scales, dtype=torch.uint8, device=device) if coded else scales(*row_scales),
            row_base=scales(lay.rows) if coded else None,
            mean=scales(lay.rows, lay.blocks, lay.zones) if mean else None,
            col_scale=scales(lay.column_groups, lay.cols) if col_scale else None,
            col_scale2=scales(lay.salient_groups, salient_columns) if second_scales else None,
            columns=torch.zeros(lay.cols, dtype=torch.int16, device=device) if ordered else None,
        )
        return cls(pw, None if bias_dtype is None else torch.zeros(lay.rows, dtype=bias_dtype, device=device))

    @property
    def in_features(self) -> int:
        return self.layout.cols

    @property
    def out_features(self) -> int:
        return self.layout.rows

    @property
    def packed(self) -> PackedWeight:
        """The weight, sharing memory with the buffers and, while these are in step, what its products keep (cpu.py)."""
        packed = self._derive()
        if self._derived_from == self._sources():
            packed.__dict__.update(order=self._buffers["order"], salient_counts=self._buffers["counts"])
        return packed

    def _sources(self) -> list[tuple[int, ...]]:
        """What `order` and `counts` follow from: which tensors, and how often torch saw these written to."""

        def source(t: Tensor) -> tuple[int, ...]:
            memory = t.data_ptr() if type(t) is Tensor else 0  # tensors that only stand for others have none
            return id(t), memory, -1 if t.is_inference() else t._version

        return [source(t) for t in (self._buffers["salient"], self._buffers["columns"]) if t is not None]

    def _derive(self) -> PackedWeight:
        """The weight, with an order and counts of its own."""
        return PackedWeight(layout=self.layout, **{name: self._buffers[name] for name in PARTS})  # type: ignore[arg-type]

    def refresh(self) -> None:
        """Derive `order` and `counts`.

        Call it after writing to `salient` or `columns` by hand; while native.repack() is on, after writing to any part
        in a way that torch does not count (`.data`, numpy).
        """
        packed = self._derive()
        self._buffers["order"] = packed.order
        self._buffers["counts"] = packed.salient_counts
        self._derived_from = self._sources()

    def dequantize(self) -> Tensor:
        """The dense weight, float32 [n, m]."""
        check_device("ARBLinear.dequantize", self._part("sign").device)
        dense: Tensor = DEQUANTIZE(*_arguments(self._buffers, self._sizes))
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """[..., m] -> [..., n] in the dtype of x. Raises InputError as `linear` does."""
        state = self.__dict__  # self.name takes nn.Module several times as long
        args = _arguments(state["_buffers"], state["_sizes"])
        y = product(x, args)
        if y is None:
            _check_input(x, self.layout, args[0].device)
            y = LINEAR(x, *args)
        bias = state["_parameters"]["bias"]
        return y if bias is None else _add_bias(y, bias)

    def extra_repr(self) -> str:
        packed = self.packed
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"method={self.layout.method}, block_size={self.layout.block_size}, groups={self.layout.groups}, "
            f"bits_per_weight={packed.bits_per_weight:.3f}"
        )

    def _part(self, name: str) -> Tensor:
        t = self._buffers[name]
        assert t is not None, f"buffer {name} is always there"
        return t

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ARBLinear:
        # Conversions change floating-point tensors only, so the scales pass through as integers of their width.
        dtypes = {name: t.dtype for name, t in self._buffers.items() if t is not None}
        integers = {torch.float16: torch.int16, torch.float32: torch.int32}
        for name, dtype in dtypes.items():
            self._buffers[name] = self._part(name).view(integers.get(dtype, dtype))
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            for name, dtype in dtypes.items():
                self._buffers[name] = self._part(name).view(dtype)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in PARTS:
            found, own = state_dict.get(prefix + name), self._buffers[name]
            if found is not None and own is not None and found.dtype != own.dtype:
                error_msgs.append(f"{prefix}{name}: {found.dtype} in the state dict, {own.dtype} in this layer")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.refresh()


def _arguments(buffers: dict[str, Any], sizes: list[int]) -> PackedArgs:
    """Of the ops, from the buffers of a layer."""
    b = buffers
    return (
        b["sign"],
        b["group"],
        b["second"],
        b["row_scale"],
        b["row_base"],
        b["mean"],
        b["col_scale"],
        b["col_scale2"],
        b["order"],
        b["counts"],
        sizes,
    )


def _check_packed(what: str, pw: object) -> None:
    if not isinstance(pw, PackedWeight):
        raise InputError(f"{what}: pw is {type(pw).__name__}, must be a PackedWeight, as quantize_weight returns it")


def _check_bias(what: str, bias: object, rows: int) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor):
        raise InputError(f"{what}: bias is {type(bias).__name__}, must be a floating-point tensor [{rows}] or None")
    if tuple(bias.shape) != (rows,):
        raise InputError(f"{what}: bias {list(bias.shape)} does not fit {rows} rows; must be [{rows}]")
    if not bias.is_floating_point():
        raise InputError(f"{what}: bias {list(bias.shape)} is {bias.dtype}, must be floating point; convert it first")


def _check_input(x: Tensor, layout: Layout, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"x is {type(x).__name__}, must be a tensor [..., {layout.cols}]; use torch.as_tensor")
    if x.layout is not torch.strided:
        raise InputError(f"x {list(x.shape)} is {x.layout}: a packed weight takes a dense tensor; use x.to_dense()")
    if x.dim() == 0 or x.shape[-1] != layout.cols:
        raise InputError(
            f"x {list(x.shape)} times a packed weight [{layout.rows}, {layout.cols}]: the last dimension of x must be "
            f"{layout.cols}"
        )
    if x.dtype not in X_DTYPES:
        raise InputError(f"x is {x.dtype}: a packed weight takes float32, bfloat16 or float16; convert x first")
    if x.device != device:
        raise InputError(f"x is on {x.device}, the packed weight on {device}: move one of them")
    check_device("arb.linear", device)


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)
