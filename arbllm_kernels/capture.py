"""How a model calls its decoder layers: one forward pass in which every layer lets its input through.

Masks, rotary tables and whatever else a model computes once and hands to its layers are recorded instead of rebuilt,
layer by layer (Gemma gives its sliding and full attention layers different masks), so no architecture needs code of
its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class Call:
    """What the model passes to one layer for one sample, besides the hidden states.

    `keyword` is the name under which the hidden states go, None when they are the first positional argument.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's output hidden states; a copy of `hidden` goes in, in case the layer works in place."""
        own = hidden.clone()
        if self.keyword is None:
            return _hidden_of(layer(own, *self.args, **self.kwargs))
        return _hidden_of(layer(*self.args, **{self.keyword: own}, **self.kwargs))


@dataclass(frozen=True, eq=False)
class Captured:
    """hidden[s] [1, T, d]: input of the first layer for sample s; calls[s][l]: how layer l is called."""

    hidden: list[Tensor]
    calls: list[list[Call]]

    @property
    def tokens(self) -> int:
        """T, the tokens of a sample."""
        return self.hidden[0].shape[1]


def capture(
    model: nn.Module, layers: nn.ModuleList, ids: Tensor, advance: Callable[[], None] = lambda: None
) -> Captured:
    """Run the model up to its last decoder layer once per sample and record every layer's arguments.

    Layer 0 must hold its weights: it is run once, to learn whether layers return a tensor or a tuple. What a later
    sample shares with the first (masks, rotary tables) is kept once.

    Args:
        ids: int64 [samples, T].

    Raises:
        UnsupportedModelError: the layers are not simply called one after the other.
    """
    hidden: list[Tensor] = []
    calls: list[list[Call]] = []
    device = next(p.device for p in layers[0].parameters())
    template: Any = None
    for sample in ids:
        recorder = _Recorder(layers, template)
        with recorder, contextlib.suppress(_LastLayer):
            model(input_ids=sample[None].to(device), use_cache=False)
        if len(recorder.calls) != len(layers):
            raise UnsupportedModelError(
                f"{type(model).__name__}: called {len(recorder.calls)} of its {len(layers)} decoder layers"
            )
        template = recorder.template
        hidden.append(recorder.first)
        shared = [] if not calls else [_share_call(new, old) for new, old in zip(recorder.calls, calls[0], strict=True)]
        calls.append(shared or recorder.calls)
        advance()
    return Captured(hidden, calls)


class _LastLayer(Exception):
    """Leaves the forward pass: what follows the decoder layers is not needed."""


class _Recorder:
    """Replaces the layers' forward by one that records and passes through."""

    def __init__(self, layers: nn.ModuleList, template: Any) -> None:
        self._layers = layers
        self._last: Tensor | None = None
        self._stack = contextlib.ExitStack()
        self.template = template
        self.calls: list[Call] = []
        self.first: Tensor = torch.empty(0)

    def __enter__(self) -> _Recorder:
        for index, layer in enumerate(self._layers):
            self._stack.enter_context(forward_replaced(layer, self._make_forward(index, layer.forward)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _make_forward(self, index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                hidden, call = args[0], Call(args[1:], kwargs, None)
            elif "hidden_states" in kwargs:
                hidden = kwargs.pop("hidden_states")
                call = Call((), kwargs, "hidden_states")
            else:
                raise UnsupportedModelError(f"decoder layer {index} is called without hidden states")
            if index != len(self.calls) or (self._last is not None and hidden is not self._last):
                raise UnsupportedModelError(
                    f"decoder layer {index} does not simply receive the output of the layer before it"
                )
            self.calls.append(call)
            if index == 0:
                self.first = hidden.detach().clone()
                if self.template is None:
                    self.template = original(*args, **kwargs) if args else original(hidden_states=hidden, **kwargs)
            if index == len(self._layers) - 1:
                raise _LastLayer
            self._last = hidden
            return hidden if isinstance(self.template, Tensor) else (hidden, *self.template[1:])

        return forward


@contextlib.contextmanager
def forward_replaced(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    missing = object()
    before = layer.__dict__.get("forward", missing)
    layer.forward = forward
    try:
        yield
    finally:
        if before is missing:
            del layer.forward
        else:
            layer.forward = before


def _hidden_of(output: Any) -> Tensor:
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor):
        raise UnsupportedModelError(f"a decoder layer returned {type(output).__name__}, not hidden states")
    return hidden


def _share_call(new: Call, old: Call) -> Call:
    return Call(_share(new.args, old.args), _share(new.kwargs, old.kwargs), new.keyword)


def _share(new: Any, old: Any) -> Any:
    """`new`, with every tensor that equals its counterpart in `old` replaced by it, so that it is held once."""
    if isinstance(new, Tensor):
        same = isinstance(old, Tensor) and new.shape == old.shape and new.dtype == old.dtype and torch.equal(new, old)
        return old if same else new
    if type(new) in (tuple, list) and type(old) is type(new) and len(new) == len(old):
        return type(new)(_share(a, b) for a, b in zip(new, old, strict=True))
    if type(new) is dict and type(old) is dict:
        return {key: _share(value, old.get(key)) for key, value in new.items()}
    return new
