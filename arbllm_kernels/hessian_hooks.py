"""Hessians of a layer's linears, H = (2/N) sum x x^T over all tokens of N sequences (as in GPTQ and BiLLM).

Linears fed by the same tensor (q/k/v, gate/up) have the same H: it is summed once and factorized once. Which linears
share is observed, not assumed: the sums are kept per set of linears that met in one tensor.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError

Key = tuple[str, ...]
PANEL = 256  # columns of a Hessian summed by one matrix product


@dataclass(frozen=True, eq=False)
class SharedInput:
    """Linears with the same input.

    names: the linears. H: raw Hessian, float32 [m, m]; the identity where no token arrived. tokens: how many did.
    drift: (2/N) sum (x' - x) x^T, where x' is the dense model's input; None where it is not known.
    """

    names: list[str]
    H: Tensor
    tokens: int
    drift: Tensor | None = None


@dataclass(eq=False)
class _Seen:
    tensor: Tensor
    version: int
    names: list[str]


def _add_gram(total: Tensor, x: Tensor) -> None:
    """Add x^T x to `total`, but for the panels below the diagonal: little more than half the work for wide inputs."""
    for a in range(0, x.shape[1], PANEL):
        total[a : a + PANEL, a:].addmm_(x[:, a : a + PANEL].t(), x[:, a:])


class _EverythingSeen(Exception):
    """Leaves a layer's forward pass: what follows its last linear's input adds nothing to the Hessians."""


class HessianCollector:
    """Sums x x^T of the inputs of `linears` while samples run through their layer.

    Use as a context manager; `seconds` is the time spent summing.
    """

    def __init__(self, linears: dict[str, nn.Linear], dense: Sequence[dict[str, Tensor]] = ()) -> None:
        """`dense`: per sample, the dense model's inputs [tokens, in_features] by linear; empty: no drift is summed."""
        self._linears = linears
        self._dense = dense
        self._drifts: dict[Key, Tensor] = {}
        self._seen: dict[int, _Seen] = {}
        self._sums: dict[Key, Tensor] = {}
        self._tokens: dict[Key, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._samples = 0
        self._calls: list[str] = []
        self._once_each = False
        self.seconds = 0.0

    def __enter__(self) -> HessianCollector:
        for name, linear in self._linears.items():
            self._handles.append(linear.register_forward_pre_hook(self._make_hook(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def add_sample(self, forward: Callable[[], object]) -> None:
        """Run one forward pass and add its inputs to the sums.

        If the first pass called every linear just once, later ones are left at the last linear's input.

        Raises:
            UnsupportedModelError: the layer changed a linear's input in place after using it.
        """
        with contextlib.suppress(_EverythingSeen):
            forward()
        start = time.perf_counter()
        for seen in self._seen.values():
            if seen.tensor._version != seen.version:
                raise UnsupportedModelError(
                    f"the input of {seen.names[0]} is changed in place after the linear read it"
                )
            x = seen.tensor.reshape(-1, seen.tensor.shape[-1]).float()
            key = tuple(seen.names)
            if key not in self._sums:
                self._sums[key] = x.new_zeros(x.shape[1], x.shape[1])
                self._tokens[key] = 0
            _add_gram(self._sums[key], x)
            self._tokens[key] += x.shape[0]
            dense = self._dense[self._samples].get(key[0]) if self._dense else None
            if dense is not None and dense.shape == x.shape:
                self._drifts.setdefault(key, torch.zeros_like(self._sums[key])).addmm_((dense - x).t(), x)
        self._seen.clear()
        if self._samples == 0:
            self._once_each = sorted(self._calls) == sorted(self._linears)
        self._calls.clear()
        self._samples += 1
        self.seconds += time.perf_counter() - start

    def shared_inputs(self) -> list[SharedInput]:
        """One entry per distinct input, in the order of the linears. The sums are handed over: call it once."""
        groups: dict[tuple[Key, ...], list[str]] = {}
        for name in self._linears:
            keys = tuple(key for key in self._sums if name in key)
            # linears that saw nothing share nothing: they may differ in width
            groups.setdefault(keys or ((name,),), []).append(name)
        result = []
        for keys, names in groups.items():
            tokens = sum(self._tokens.get(key, 0) for key in keys)
            if tokens == 0:
                weight = self._linears[names[0]].weight
                H = torch.eye(weight.shape[1], device=weight.device)
            else:
                upper = sum((self._sums[key] for key in keys[1:]), start=self._sums[keys[0]])
                H = (upper.triu() + upper.triu(1).T) * (2.0 / self._samples)
            # a linear that shares its input in some samples only is a routed expert: its tokens need not be the same
            drift = self._drifts.get(keys[0]) if len(keys) == 1 else None
            result.append(SharedInput(names, H, tokens, None if drift is None else drift * (2.0 / self._samples)))
        self._sums.clear()
        self._drifts.clear()
        return result

    def _make_hook(self, name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            # holding the tensor keeps its id from being reused within the sample
            seen = self._seen.setdefault(id(x), _Seen(x, x._version, []))
            if name not in seen.names:
                seen.names.append(name)
            self._calls.append(name)
            if self._once_each and len(self._calls) == len(self._linears):
                raise _EverythingSeen

        return hook
