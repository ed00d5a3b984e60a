"""QuantConfig: every knob of the paper and of the solver that goes beyond it, as one frozen value.

The defaults are ARB-LLM_RC of the paper (ARB-RC + CGB, block 128, 15 iterations), with the behaviour of its reference
program where the two differ. `QuantConfig.preset` names the three configurations that most users need.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import InputError

PAPER_METHODS = ("billm", "arb", "arb-x", "arb-rc")
METHODS = (*PAPER_METHODS, "arb-levels")
METRICS = ("hessian", "magnitude")
PRESETS = ("paper", "best", "compact")
DEFAULT_PRESET = "best"  # of the command line
LEAST_BITS = 2.0  # a sign and a group bit per weight
SCALE_DTYPES = ("fp16", "fp32")
GROUPS = (1, 2, 4)
NEWER_FIELDS = ("bits", "sweeps", "sequential", "correction")  # unknown to the first readers of version 1


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How to binarize a weight matrix (paper sections 3.1-3.4, 4.1; "arb-levels": docs/quality.md).

    Args:
        method: "billm", "arb" (section 3.1), "arb-x" (3.2), "arb-rc" (3.3), or "arb-levels", which is not the paper's.
        cgb: column-group bitmap (3.4): salient columns are split into groups like the others.
        block_size: columns per block (k), 1..65536; the last block may be shorter. "arb-levels" takes the nearest
            multiple of 64 that makes blocks of one width.
        iters: alternating refinement iterations T (ARB-X runs T of ARB, then T of its own). BiLLM ignores it.
        groups: magnitude groups per part, 1, 2 or 4 (Table 4f); stored in log2(groups) bits per weight.
        salient_order: binary planes on salient columns, 1 or 2 (equation 6).
        metric: "hessian" (s = w^2 / d^2) or "magnitude" (s = w) for the partition search.
        max_salient: the search tries 1 .. max_salient - 1 salient columns per block.
        thresholds: candidate split thresholds, evenly spaced quantiles of |s| from 10 % to 90 %.
        damp: share of mean(diag H) added to the diagonal of H before it is inverted.
        scale_dtype: storage of scales and means, "fp16" or "fp32".
        bits: "arb-levels" only: true bits per weight that no matrix exceeds, unless it needs more without any
            salient column (one so small that scales outweigh it); None: every column is salient.
        sweeps: "arb-levels" only: rounds of coordinate descent over all columns.
        sequential: the linears of a layer are quantized in the order of their use, each from the inputs that the
            quantized ones before it give; False, as in the paper: from inputs within the dense layer.
        correction: how far a linear aims at the outputs that the dense model has at this point, 0..1; 0, as in the
            paper: at its own weights' outputs for the inputs of the quantized model.

    Raises:
        InputError: a field is of the wrong type or out of range; the message names it.
    """

    method: str = "arb-rc"
    cgb: bool = True
    block_size: int = 128
    iters: int = 15
    groups: int = 2
    salient_order: int = 2
    metric: str = "hessian"
    max_salient: int = 50
    thresholds: int = 81
    damp: float = 0.01
    scale_dtype: str = "fp16"
    bits: float | None = None
    sweeps: int = 3
    sequential: bool = False
    correction: float = 0.0

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("metric", self.metric, METRICS)
        _one_of("scale_dtype", self.scale_dtype, SCALE_DTYPES)
        _one_of("groups", self.groups, GROUPS)
        _one_of("salient_order", self.salient_order, (1, 2))
        _one_of("cgb", self.cgb, (True, False))
        _in_range("block_size", self.block_size, 1, 65536)
        _in_range("iters", self.iters, 0, 10_000)
        _in_range("max_salient", self.max_salient, 2, 65536)
        _in_range("thresholds", self.thresholds, 1, 10_000)
        _one_of("sequential", self.sequential, (True, False))
        _in_range("sweeps", self.sweeps, 0, 10_000)
        if not _is_number(self.damp) or not 0.0 <= self.damp < float("inf"):
            raise InputError(f"QuantConfig.damp = {self.damp!r}: must be a finite number >= 0")
        if not _is_number(self.correction) or not 0.0 <= self.correction <= 1.0:
            raise InputError(f"QuantConfig.correction = {self.correction!r}: must be a number in 0..1")
        self._check_levels()

    def _check_levels(self) -> None:
        if not self.has_levels:
            if self.bits is not None:
                raise InputError(f"QuantConfig.bits = {self.bits!r}: only method 'arb-levels' meets a target")
            return
        if self.bits is not None and (not _is_number(self.bits) or not LEAST_BITS <= self.bits < float("inf")):
            raise InputError(f"QuantConfig.bits = {self.bits!r}: must be None or a number >= {LEAST_BITS}")
        if (self.groups, self.salient_order, self.cgb) != (2, 2, True):
            raise InputError("QuantConfig: method 'arb-levels' needs groups = 2, salient_order = 2 and cgb = True")

    @property
    def salient_groups(self) -> int:
        """Groups among salient columns: without CGB they form a single zone."""
        return self.groups if self.cgb else 1

    @property
    def has_column_scales(self) -> bool:
        """ARB-RC scales rows and columns and has no mean; the others scale rows around a row mean."""
        return self.method in ("arb-rc", "arb-levels")

    @property
    def has_levels(self) -> bool:
        """The method of methods/levels.py: shared column scales, 8-bit row scales, columns in an order of their own."""
        return self.method == "arb-levels"

    @classmethod
    def preset(cls, name: str) -> QuantConfig:
        """One of three configurations.

        "paper": ARB-LLM_RC, the procedure of the paper and its reference program.
        "best": "arb-levels" with at most 2.9 true bits per weight.
        "compact": the same with at most 2.3.

        Raises:
            InputError: another name.
        """
        if name not in PRESETS:
            raise InputError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
        if name == "paper":
            return cls()
        bits = {"best": 2.9, "compact": 2.3}[name]
        return cls(method="arb-levels", block_size=2048, bits=bits, damp=0.1)

    @property
    def label(self) -> str:
        """The name used in tables, e.g. "ARB-RC + CGB"."""
        if self.has_levels:
            return "ARB-levels" if self.bits is None else f"ARB-levels, {self.bits:g} bits"
        name = {"billm": "BiLLM"}.get(self.method, self.method.upper())
        return f"{name} + CGB" if self.cgb else name

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON.

        What came after the paper's knobs is there only where it is set, so that files of its methods keep their bytes.
        """
        newer = {f.name: f.default for f in dataclasses.fields(self) if f.name in NEWER_FIELDS}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in newer or v != newer[k]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantConfig:
        """Inverse of `to_dict`. Raises InputError on an unknown key."""
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"unknown QuantConfig fields {unknown}: was this written by a newer version?")
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(type(value) is type(a) and value == a for a in allowed):  # 2.0, 1 and True equal 2, True and 1
        raise InputError(f"QuantConfig.{name} = {value!r}: must be one of {', '.join(map(str, allowed))}")


def _in_range(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"QuantConfig.{name} = {value!r}: must be a whole number in {low}..{high}")
