"""The steps that lead to the presets of `arb-levels`, one change after the other, and single changes to a preset.

bench/ablation.py measures them on some linears, bench/quality.py on whole models (`--variants PRESET.NAME`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import arbllm_kernels as arb
from arbllm_kernels import layer_loop
from arbllm_kernels.methods import Factor, hessian_factor

PRESETS = ("compact", "best")


@dataclass(frozen=True)
class Step:
    """label: for tables. knobs: fields of the preset's config that differ.

    feedback: False: the solver is told that no two inputs are correlated, so no column's error moves another.
    """

    label: str
    knobs: dict[str, Any] = field(default_factory=dict)
    feedback: bool = True

    def config(self, preset: str) -> arb.QuantConfig:
        return dataclasses.replace(arb.QuantConfig.preset(preset), **self.knobs)


BEFORE = {"block_size": 256, "damp": 0.01}
STEPS = {
    "256.damp01.plain": Step("nearest levels, blocks of 256, damp 0.01", {**BEFORE, "sweeps": 0}, feedback=False),
    "256.damp01.feedback": Step("+ feedback inside the block", {**BEFORE, "sweeps": 0}),
    "256.damp01": Step("+ coordinate descent, 3 rounds", BEFORE),
    "damp01": Step("+ one block", {"damp": 0.01}),
    "": Step("+ damp 0.1: the preset"),
}
SINGLE = {
    "256": Step("but blocks of 256", {"block_size": 256}),
    "sequential": Step("but in order of use", {"sequential": True}),
    "correction": Step("but `correction = 1`", {"correction": 1.0}),
}
VARIANTS = {f"{preset}.{name}": (preset, step) for preset in PRESETS for name, step in (STEPS | SINGLE).items() if name}


def uncorrelated(H: Tensor) -> Tensor:
    return torch.diag(H.diagonal())


@contextmanager
def at_work(step: Step) -> Iterator[None]:
    """While active the layer loop gives the solver what the step does."""

    def factor(H: Tensor, damp: float, *, ordered: bool) -> Factor:
        return hessian_factor(H if step.feedback else uncorrelated(H), damp, ordered=ordered)

    with mock.patch.object(layer_loop, "hessian_factor", factor):
        yield
