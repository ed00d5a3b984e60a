"""Tune the scales of a packed model, signs and codes fixed, until it predicts the text as the dense model does.

Every packed weight Q [n, m] gets a factor per row and, where its format has column scales, one per column: diag(r) Q
diag(c), all 1 at first. They are learned together by Adam; the loss is the Kullback-Leibler divergence of the model's
next-token distribution from the dense model's (distillation, Hinton et al. 2015), averaged over the positions of one
window of text per step. At the end the factors go into the stored scales, which are rounded to their type again: not a
bit is added. Gradients need no dense weights, y = r (Q (c x)), so memory holds the packed model and one window's
activations; the dense model runs once per window, and only its last hidden states are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import InputError, UnsupportedModelError
from .linear import ARBLinear
from .models import check_ids
from .packed import PARTS, PackedWeight
from .progress import Report

EPOCHS = 2
RATE = 5e-3
BETAS = (0.9, 0.95)  # few steps: the second moment must not remember the first ones for long
CHUNK = 128  # positions whose logits exist at the same time
State = dict[str, Tensor]


class Keeper(Protocol):
    """Where a run leaves its state after each step, to go on from there when it is interrupted."""

    def read(self) -> State | None: ...

    def write(self, state: State) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and how fast.

    Args:
        epochs: how often every window is seen.
        rate: Adam's step for the factors at the start; it falls to 0 along a cosine.
        seed: order of the windows.

    Raises:
        InputError: a field is of the wrong type or out of range.
    """

    epochs: int = EPOCHS
    rate: float = RATE
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value < 1 << 31:
                raise InputError(f"{name} = {value!r}: must be a whole number of at least {low}")
        if type(self.rate) not in (int, float) or not 0.0 < self.rate <= 1.0:
            raise InputError(f"rate = {self.rate!r}: must be a number above 0, at most 1")


def tune_model(
    model: nn.Module,
    dense: nn.Module,
    calib_ids: Tensor,
    settings: Settings | None = None,
    *,
    progress: bool | None = None,
    keeper: Keeper | None = None,
) -> list[float]:
    """Tune the scales of every ARBLinear of `model`, in place.

    Args:
        model: a transformers causal LM with ARBLinear layers, its other tensors float32.
        dense: the model it was made from, float32.
        calib_ids: int64 [samples, seqlen], text to compare the two on.
        progress: show a progress bar; None: if stderr is a terminal.
        keeper: makes the run resumable (tuning.py).

    Returns:
        The mean divergence, in nats per token, of each epoch as it was seen: the first is about that of the start.

    Raises:
        InputError: bad ids, nothing to tune, another dtype or vocabulary. The model is unchanged.
        UnsupportedModelError: a model without body and head in the manner of transformers.
    """
    settings = settings or Settings()
    check_ids(calib_ids, model)
    _check(model, dense)
    report = Report(show=progress)
    factors = Factors.of(model)
    steps = settings.epochs * len(calib_ids)
    moments = [torch.zeros_like(factors.flat) for _ in range(2)]
    losses = torch.zeros(steps)
    done = 0
    if keeper is not None and (state := keeper.read()) is not None:
        done = _restore(state, factors, moments, losses)
    with torch.no_grad(), report.bar("dense model", len(calib_ids)):
        targets = [_targets(dense, ids, report.advance) for ids in calib_ids] if done < steps else []
    optimizer = torch.optim.Adam([factors.flat], lr=settings.rate, betas=BETAS)
    optimizer.state[factors.flat] = {"step": torch.tensor(float(done)), "exp_avg": moments[0], "exp_avg_sq": moments[1]}
    with factors.at_work(), report.bar("tuning", steps):
        report.advance(done)
        for step in range(done, steps):
            window = _order(len(calib_ids), step // len(calib_ids), settings.seed)[step % len(calib_ids)]
            optimizer.param_groups[0]["lr"] = settings.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            losses[step] = _backward(model, dense, calib_ids[window], targets[window], factors.flat)
            optimizer.step()
            report.advance(1, f"tuning, divergence {float(losses[max(0, step - 15) : step + 1].mean()):.4f}")
            if keeper is not None:
                keeper.write(_state(step + 1, factors, moments, losses))
    factors.store()
    return losses.view(settings.epochs, -1).mean(1).tolist()


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of all packed layers in one flat tensor, the only one that is learned.

    flat: [total]. layers: each ARBLinear with where its factors are: rows at `start`, columns after them, if any.
    """

    flat: Tensor
    layers: list[tuple[ARBLinear, int, bool]]

    @classmethod
    def of(cls, model: nn.Module) -> Factors:
        layers, total, device = [], 0, None
        for module in model.modules():
            if isinstance(module, ARBLinear):
                has_columns = module.packed.col_scale is not None
                layers.append((module, total, has_columns))
                device = module.packed.sign.device
                total += module.out_features + (module.in_features if has_columns else 0)
        return cls(torch.ones(total, device=device, requires_grad=True), layers)

    def parts(self, layer: ARBLinear, start: int, has_columns: bool) -> tuple[Tensor, Tensor | None]:
        """(row factors [n], column factors [m] or None) of one layer, views of `flat`."""
        middle = start + layer.out_features
        return self.flat[start:middle], self.flat[middle : middle + layer.in_features] if has_columns else None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While active the layers compute with the factors."""
        with contextlib.ExitStack() as stack:
            for entry in self.layers:
                row, col = self.parts(*entry)
                if col is not None:
                    stack.callback(entry[0].register_forward_pre_hook(_scale_input(col)).remove)
                stack.callback(entry[0].register_forward_hook(_scale_output(row)).remove)
            yield

    @torch.no_grad()
    def store(self) -> None:
        """Put the factors into the layers' stored scales."""
        tuned = [(layer, scaled(layer.packed, *self.parts(layer, start, has))) for layer, start, has in self.layers]
        for layer, packed in tuned:
            for name in PARTS:
                layer._buffers[name] = getattr(packed, name)


def scaled(packed: PackedWeight, row: Tensor, col: Tensor | None) -> PackedWeight:
    """diag(row) Q diag(col) in the format of Q: its scales times the factors, rounded to their type.

    Raises:
        FormatError: a scale leaves the range of its type.
    """
    changes: dict[str, Any] = {}
    if packed.row_base is not None:
        changes["row_base"] = (packed.row_base.float() * row).to(packed.row_base.dtype)
    else:
        changes["row_scale"] = (packed.row_scale.float() * row[:, None, None]).to(packed.row_scale.dtype)
    if packed.mean is not None:
        changes["mean"] = (packed.mean.float() * row[:, None, None]).to(packed.mean.dtype)
    if col is not None and packed.col_scale is not None:
        order = packed.order.long()
        changes["col_scale"] = (packed.col_scale.float() * col[order]).to(packed.col_scale.dtype)
        if packed.col_scale2 is not None:
            salient = order[packed.salient_mask[order]]
            changes["col_scale2"] = (packed.col_scale2.float() * col[salient]).to(packed.col_scale2.dtype)
    return dataclasses.replace(packed, **changes).validate()


def _scale_input(col: Tensor) -> Callable[..., Any]:
    return lambda _layer, args: (args[0] * col, *args[1:])


def _scale_output(row: Tensor) -> Callable[..., Any]:
    def hook(layer: nn.Module, _args: Any, y: Tensor) -> Tensor:
        bias: Any = layer.bias
        return y * row if bias is None else (y - bias) * row + bias

    return hook


def _targets(dense: nn.Module, ids: Tensor, advance: Callable[[], None]) -> Tensor:
    hidden = _hidden(dense, ids)
    advance()
    return hidden


def _hidden(model: Any, ids: Tensor) -> Tensor:
    """What the output head reads, [T, d]."""
    device = next(model.parameters()).device
    hidden: Tensor = model.base_model(input_ids=ids[None].to(device), use_cache=False).last_hidden_state[0]
    return hidden


def _backward(model: Any, dense: Any, ids: Tensor, target: Tensor, factors: Tensor) -> float:
    """Divergence over one window; `factors` gets its gradient. The head is worked on in chunks of positions.

    It is the heads' own outputs that are compared: what a model does to them afterwards (caps, a constant factor) is
    the same for both.
    """
    hidden = _hidden(model, ids)
    ours, theirs = model.get_output_embeddings(), dense.get_output_embeddings()
    total, gradient = 0.0, torch.empty_like(hidden)
    for start in range(0, len(ids), CHUNK):
        here = slice(start, min(start + CHUNK, len(ids)))
        part = hidden[here].detach().requires_grad_()
        with torch.no_grad():
            wanted = theirs(target[here]).log_softmax(-1).to(part.device)
        found = ours(part).log_softmax(-1)
        loss = (wanted.exp() * (wanted - found)).sum() / len(ids)
        (gradient[here],) = torch.autograd.grad(loss, part)
        total += float(loss.detach())
    (factors.grad,) = torch.autograd.grad(hidden, factors, gradient)
    return total


def _order(count: int, epoch: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    return torch.randperm(count, generator=generator).tolist()


def _state(step: int, factors: Factors, moments: list[Tensor], losses: Tensor) -> State:
    return {
        "step": torch.tensor(step),
        "factors": factors.flat.detach(),
        "first": moments[0],
        "second": moments[1],
        "losses": losses,
    }


def _restore(state: State, factors: Factors, moments: list[Tensor], losses: Tensor) -> int:
    """Continue from a state: the steps done. Raises InputError if it is another run's."""
    ours = _state(0, factors, moments, losses)
    if state.keys() != ours.keys() or any(
        state[k].shape != t.shape or state[k].dtype != t.dtype for k, t in ours.items()
    ):
        raise InputError("the state of the interrupted run does not fit this model and these windows")
    step = int(state["step"])
    if not 0 <= step <= len(losses) or not all(bool(torch.isfinite(t).all()) for t in state.values()):
        raise InputError("the state of the interrupted run is damaged")
    for name in ("factors", "first", "second", "losses"):
        ours[name].copy_(state[name])
    return step


def _check(model: Any, dense: Any) -> None:
    layers = [module for module in model.modules() if isinstance(module, ARBLinear)]
    if not layers:
        raise InputError(f"{type(model).__name__} holds no ARBLinear, so there is nothing to tune")
    if any(isinstance(module, ARBLinear) for module in dense.modules()):
        raise InputError("the model to learn from is quantized itself: give the dense one")
    for what, one in (("model", model), ("dense model", dense)):
        head = one.get_output_embeddings() if hasattr(one, "get_output_embeddings") else None
        if head is None or getattr(one, "base_model", one) is one:
            raise UnsupportedModelError(f"the {what}, {type(one).__name__}, has no body and head as in transformers")
        wrong = {p.dtype for p in one.parameters() if p.is_floating_point()} - {torch.float32}
        if wrong:
            raise InputError(f"the {what} holds {', '.join(map(str, wrong))}: load it with dtype=torch.float32")
    shapes = [tuple(one.get_input_embeddings().weight.shape) for one in (model, dense)]
    if shapes[0] != shapes[1]:
        raise InputError(f"embeddings {list(shapes[0])}, of the dense model {list(shapes[1])}: not the same model")
    model.eval(), dense.eval()
