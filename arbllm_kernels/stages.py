"""What goes beyond one pass per layer: the order in which linears are used, and what the dense model feeds them.

Sequential quantization takes a layer in stages: linears with the same input belong together, and a later stage sees the
quantized weights of the earlier ones. The correction needs the dense model's activations beside the quantized model's;
they run along here, one layer's inputs kept at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from .capture import Call, Captured
from .onednn import linears_prepared

Linears = dict[str, nn.Linear]


def stages(linears: Linears, forward: Callable[[], object]) -> list[Linears]:
    """The linears in the order in which a forward pass first uses them, those with one input together.

    The experts of a mixture are one stage, as if they were one linear; what the pass does not reach comes last.
    """
    order: list[tuple[str, Tensor]] = []
    with _watching(linears, lambda name, x: order.append((name, x))):
        forward()
    stage_of_input: dict[int, int] = {}
    stage_of_kind: dict[str, int] = {}
    found: dict[str, int] = {}
    for name, x in order:
        kind = _kind(name)
        stage = stage_of_kind.get(kind, stage_of_input.get(id(x), len(stage_of_input)))
        stage_of_input.setdefault(id(x), stage)  # `order` holds every tensor, so that no id is used twice
        found.setdefault(name, stage_of_kind.setdefault(kind, stage))
    last = max(found.values(), default=0)
    place = {name: found.get(name, stage_of_kind.get(_kind(name), last)) for name in linears}
    return [{n: linears[n] for n in linears if place[n] == stage} for stage in sorted(set(place.values()))]


def _kind(name: str) -> str:
    """The name without numbers: what the experts of a mixture have in common."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


class DenseModel:
    """The dense model's hidden states [1, T, d] per sample, and its inputs to the linears of the current layer.

    `inputs` holds, per sample, name -> [tokens, in_features]; only linears that are called once.
    """

    def __init__(self, captured: Captured) -> None:
        self._hidden = list(captured.hidden)
        self.inputs: list[dict[str, Tensor]] = []

    def advance(self, layer: nn.Module, calls: Sequence[Call], linears: Linears) -> None:
        """Run every sample through a layer that is dense yet."""
        self.inputs = []
        with linears_prepared(layer, self._hidden[0].shape[1]):
            for s, call in enumerate(calls):
                uses: list[tuple[str, Tensor]] = []
                with _watching(linears, lambda name, x: uses.append((name, x))):  # noqa: B023 - used at once
                    self._hidden[s] = call.run(layer, self._hidden[s])
                often = Counter(name for name, _ in uses)
                self.inputs.append({name: x.reshape(-1, x.shape[-1]) for name, x in uses if often[name] == 1})


@contextmanager
def _watching(linears: Linears, see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Call `see` with the name and the input of each linear that is used."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(name, args[0])

        return hook

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
