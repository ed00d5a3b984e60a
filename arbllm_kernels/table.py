"""Embeddings and output heads in 8 bits: whole numbers -127..127 and one scale per row of the vocabulary.

Beside binarized layers a vocabulary in half precision is often the larger part of a file (SmolLM2: 57 of 99 MB). A row
is an embedding vector, or the weights of one logit; rounded to 255 levels of its largest magnitude it changes by about
a percent, where binarization changes a layer's weights by tens of percent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cpu import DENSE_BATCH, tiles
from .errors import InputError
from .native import extension

LEVELS = 127
EXACT = (nn.Embedding, nn.Linear)  # subclasses may do more than look up or multiply


def round_rows(weight: Tensor, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """[n, m] -> (int8 codes [n, m], scale [n] of `dtype`), the nearest codes for the scales as they are stored.

    Raises:
        InputError: NaN or Inf, or a row beyond the range of `dtype`.
    """
    scale = (weight.float().abs().amax(1) / LEVELS).to(dtype)
    if not bool(torch.isfinite(scale).all()) or not bool(torch.isfinite(weight).all()):
        raise InputError(f"a table {list(weight.shape)} holds NaN, Inf or values beyond {dtype}")
    safe = torch.where(scale == 0, torch.ones_like(scale), scale).float()[:, None]
    codes = torch.round(weight.float() / safe).clamp_(-LEVELS, LEVELS)
    return codes.to(torch.int8), scale


class RoundedTable(nn.Module):
    """What both share: `codes` int8 [n, m] and `scale` [n], whose dtype is the module's and follows `.to(dtype)`."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        if codes.dtype != torch.int8 or codes.dim() != 2 or tuple(scale.shape) != codes.shape[:1]:
            have = f"codes {codes.dtype} {list(codes.shape)}, scale {list(scale.shape)}"
            raise InputError(f"{have}: must be int8 [n, m] and [n]")
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """The dense [n, m] table in the dtype of `scale`; a new tensor every time."""
        return self.codes.to(self.scale.dtype) * self.scale[:, None]

    def extra_repr(self) -> str:
        return f"{self.codes.shape[0]}, {self.codes.shape[1]}, 8 bits"


class RoundedEmbedding(RoundedTable):
    """nn.Embedding over a rounded table: int64 [...] -> [..., m] in the dtype of `scale`."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes[ids].to(self.scale.dtype) * self.scale[ids][..., None]


class RoundedHead(RoundedTable):
    """nn.Linear over a rounded table: [..., m] -> [..., n] in the dtype of the input; on the CPU float32 inside."""

    bias: nn.Parameter | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(codes, scale)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        y = TABLE_LINEAR(x, self.codes, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def round_embeddings(model: nn.Module) -> dict[str, float]:
    """Put the input embedding and the output head of a transformers model into 8 bits, in place; tied ones stay tied.

    Only plain nn.Embedding and nn.Linear modules are changed: a subclass may scale or normalise on top.

    Returns:
        Module name -> relative error ||W - W'|| / ||W|| of each table that was rounded.
    """
    errors: dict[str, float] = {}
    rounded: dict[int, tuple[Tensor, Tensor]] = {}
    names = {id(module): name for name, module in model.named_modules()}
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        module: Any = getattr(model, getter, lambda: None)()
        if type(module) not in EXACT:
            continue
        weight = module.weight.detach()
        if id(module.weight) not in rounded:
            rounded[id(module.weight)] = round_rows(weight, weight.dtype)
        codes, scale = rounded[id(module.weight)]
        name = names[id(module)]
        table = make_table(module, codes, scale, getattr(module, "bias", None))
        errors[name] = float((weight.float() - table.weight.float()).norm() / weight.float().norm().clamp_min(1e-30))
        model.set_submodule(name, table)
    return errors


def make_table(module: nn.Module, codes: Tensor, scale: Tensor, bias: Tensor | None) -> RoundedTable:
    """The rounded counterpart of an nn.Embedding or nn.Linear."""
    return RoundedHead(codes, scale, bias) if isinstance(module, nn.Linear) else RoundedEmbedding(codes, scale)


# ---- the op


def _table_linear_cpu(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    n, m = codes.shape
    if x.shape[-1] != m:
        raise InputError(f"8-bit table [{n}, {m}] times {list(x.shape)}: the last dimension must be {m}")
    flat = x.reshape(-1, m).to(torch.float32).contiguous()
    y = torch.empty(*x.shape[:-1], n, dtype=torch.float32)
    out = y.view(-1, n)
    if flat.shape[0] < DENSE_BATCH:
        codes = codes.contiguous()
        threads = torch.get_num_threads()
        extension.table_gemm(codes.data_ptr(), n, m, flat.data_ptr(), flat.shape[0], out.data_ptr(), threads)
    else:
        for first, last in tiles(n, m):
            torch.mm(flat, codes[first:last].float().t(), out=out[:, first:last])
    return out.mul_(scale.float()).view(y.shape).to(x.dtype)


def _table_linear(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return x @ (codes.to(x.dtype) * scale.to(x.dtype)[:, None]).t()


def _table_input_grad(dy: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """dy [..., n] -> [..., m]."""
    scaled, dx = (dy.float() * scale.float()).reshape(-1, codes.shape[0]), None
    for first, last in tiles(*codes.shape):
        part = scaled[:, first:last] @ codes[first:last].float()
        dx = part if dx is None else dx.add_(part)
    assert dx is not None, "a table has rows"
    return dx.view(*dy.shape[:-1], codes.shape[1]).to(dy.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
    return (_table_input_grad(dy, *ctx.saved_tensors) if ctx.needs_input_grad[0] else None, None, None)


def _register() -> Callable[..., Tensor]:
    op = torch.library.custom_op("arb::table_linear", _table_linear, mutates_args=())
    op.register_kernel("cpu")(_table_linear_cpu)
    op.register_fake(lambda x, codes, scale: x.new_empty(*x.shape[:-1], codes.shape[0]))
    op.register_autograd(_backward, setup_context=_save)
    overload: Callable[..., Tensor] = torch.ops.arb.table_linear.default
    return overload


TABLE_LINEAR = _register()
