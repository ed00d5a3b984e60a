"""Layer after layer: collect Hessians, quantize every linear, recompute the outputs (as in GPTQ and BiLLM).

The layers before are quantized already. All linears of a layer are quantized from inputs of the layer with its dense
weights (the paper), or in stages, each from inputs that the quantized linears before it give; then the outputs are
recomputed with the quantized weights and feed the next layer. One sample at a time, always in float32, so that a run
gives the same bits wherever its weights come from (memory, file, a resumed run).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from .capture import Captured, capture
from .config import QuantConfig
from .errors import InputError
from .heap import keep_freed_memory
from .hessian_hooks import PANEL, HessianCollector, SharedInput
from .methods import Factor, corrected, hessian_factor, solve_all, solved_together, solves_together
from .models import layer_linears
from .onednn import linears_prepared
from .ops import DEQUANTIZE, packed_args
from .packed import PackedWeight
from .progress import LinearRecord, Report, Seconds
from .stages import DenseModel, stages

LayerResult = tuple[dict[str, PackedWeight], list[LinearRecord]]


class LayerStore(Protocol):
    """Where the loop gets layers from and leaves results. In memory and streaming differ in this only."""

    model: nn.Module
    name: str
    layers: nn.ModuleList

    def outer(self) -> None:
        """Make everything around the layers (embeddings, norms) ready to run in float32."""

    def outer_done(self) -> None:
        """Undo `outer`: from here on only layers run."""

    def open(self, index: int) -> nn.Module:
        """Layer `index` with dense float32 weights; does nothing if it is open already."""

    def finished(self, index: int) -> LayerResult | None:
        """The result of an earlier run for this layer, if there is one."""

    def keep(self, index: int, result: LayerResult) -> None:
        """Store a new result."""

    def close(self, index: int, packed: dict[str, PackedWeight]) -> None:
        """The layer is not needed dense any more."""


@torch.no_grad()
def quantize_layers(store: LayerStore, ids: Tensor, cfg: QuantConfig, skip: Sequence[str], report: Report) -> None:
    """Quantize every layer of `store` in order.

    Args:
        ids: int64 [samples, T], checked already.
        skip: patterns of full linear names that stay dense.

    Raises:
        InputError, UnsupportedModelError: see methods and capture.
    """
    keep_freed_memory()
    captured = _capture(store, ids, report)
    linears = [layer_linears(layer, f"{store.name}.{i}", skip) for i, layer in enumerate(store.layers)]
    total = sum(module.in_features * module.out_features for layer in linears for module in layer.values())
    dense = DenseModel(captured) if cfg.correction > 0 else None
    unseen: list[str] = []
    with report.bar(cfg.label, total):
        for index in range(len(store.layers)):
            with _timed(report.seconds, "forward"):
                layer = store.open(index)
            result = store.finished(index)
            if dense is not None:
                with _timed(report.seconds, "forward"):
                    calls = [calls[index] for calls in captured.calls]
                    dense.advance(layer, calls, linears[index] if result is None else {})
            if result is None:
                result = _quantize_layer(store, index, layer, captured, dense, cfg, linears[index], report)
                with _timed(report.seconds, "store"):
                    store.keep(index, result)
            packed, records = result
            unseen += [record.name for record in records if record.tokens == 0]
            with _timed(report.seconds, "forward"):
                for name, weight in packed.items():
                    linear = linears[index][name]
                    linear.weight.data = _dense(weight.to(linear.weight.device))  # a resumed layer comes from the CPU
                if index + 1 < len(store.layers):
                    _advance(layer, index, captured)
            report.layer_done(index, len(store.layers), records)
            store.close(index, packed)
    if unseen:
        text = f"{len(unseen)} linears saw no calibration token (such as {unseen[0]}); H = identity was used for them"
        report.note(text + ". More calibration samples would reach them.")
        warnings.warn(text, stacklevel=3)


def _capture(store: LayerStore, ids: Tensor, report: Report) -> Captured:
    with _timed(report.seconds, "forward"), report.bar("embedding calibration text", len(ids)):
        store.outer()
        try:
            store.open(0)
            return capture(store.model, store.layers, ids, report.advance)
        finally:
            store.outer_done()


def _quantize_layer(
    store: LayerStore,
    index: int,
    layer: nn.Module,
    captured: Captured,
    dense: DenseModel | None,
    cfg: QuantConfig,
    linears: dict[str, nn.Linear],
    report: Report,
) -> LayerResult:
    seconds, prefix = report.seconds, f"{store.name}.{index}"
    packed: dict[str, PackedWeight] = {}
    records: dict[str, LinearRecord] = {}
    for inputs in _inputs(layer, index, captured, dense, cfg, linears, seconds):
        jobs: list[_Job] = []
        for shared in inputs:
            with _timed(seconds, "factor"), _naming(f"{prefix}.{shared.names[0]}"):
                factor = hessian_factor(shared.H, cfg.damp, ordered=cfg.has_levels)
            S = shared.H / 2 if cfg.method == "arb-x" else None
            jobs += [_Job(name, shared, factor, S) for name in shared.names]
        for group in solved_together([linears[job.name].weight for job in jobs], cfg):
            some, start = [jobs[i] for i in group], time.perf_counter()
            names = [f"{prefix}.{job.name}" for job in some]
            targets = [_target(linears[job.name].weight.data, job, cfg) for job in some]
            with _naming(", ".join(names)):
                found = solve_all(targets, [job.factor for job in some], cfg, [job.S for job in some])
            elapsed = time.perf_counter() - start
            seconds.solve += elapsed
            for full, job, (weight, loss) in zip(names, some, found, strict=True):
                linear, packed[job.name] = linears[job.name], weight
                part = elapsed * linear.weight.numel() / sum(target.numel() for target in targets)
                records[job.name] = _record(full, linear.weight.data, weight, job.shared, loss, part)
                if cfg.sequential:
                    linear.weight.data = _dense(weight)
                report.advance(linear.weight.numel(), f"{cfg.label} {full}")
    return {name: packed[name] for name in linears}, [records[name] for name in linears]


@dataclass(frozen=True, eq=False)
class _Job:
    """One linear of the layer and what its solver needs."""

    name: str
    shared: SharedInput
    factor: Factor
    S: Tensor | None


def _target(weight: Tensor, job: _Job, cfg: QuantConfig) -> Tensor:
    if job.shared.drift is None:
        return weight
    return corrected(weight, job.factor, job.shared.drift, cfg.correction)


def _inputs(
    layer: nn.Module,
    index: int,
    captured: Captured,
    dense: DenseModel | None,
    cfg: QuantConfig,
    linears: dict[str, nn.Linear],
    seconds: Seconds,
) -> Iterator[list[SharedInput]]:
    """The Hessians of a layer: one by one, so that each can be freed, or all, where their linears are solved together.

    In stages if the config says so.
    """
    together = solves_together(next(iter(linears.values())).weight.device, cfg) if linears else False
    parts = [linears]
    if cfg.sequential:
        with _timed(seconds, "forward"):
            parts = stages(linears, partial(captured.calls[0][index].run, layer, captured.hidden[0]))
    for part in parts:
        start = time.perf_counter()
        collector = HessianCollector(part, () if dense is None else dense.inputs)
        with collector, linears_prepared(layer, captured.tokens):
            for hidden, calls in zip(captured.hidden, captured.calls, strict=True):
                collector.add_sample(partial(calls[index].run, layer, hidden))
        seconds.hessian += collector.seconds
        seconds.forward += time.perf_counter() - start - collector.seconds
        inputs = collector.shared_inputs()
        if together:
            yield inputs
            inputs = []
        while inputs:
            yield [inputs.pop(0)]


def _advance(layer: nn.Module, index: int, captured: Captured) -> None:
    """Replace every sample's hidden states by the layer's output."""
    with linears_prepared(layer, captured.tokens):
        for s, (hidden, calls) in enumerate(zip(captured.hidden, captured.calls, strict=True)):
            captured.hidden[s] = calls[index].run(layer, hidden)


def _dense(packed: PackedWeight) -> Tensor:
    """What the kernels multiply by. From them, because PackedWeight.dequantize gives the same bits more slowly."""
    dense: Tensor = DEQUANTIZE(*packed_args(packed))
    return dense


def _record(
    name: str, weight: Tensor, packed: PackedWeight, shared: SharedInput, loss: float, seconds: float
) -> LinearRecord:
    error = float(_energy(weight - _dense(packed), shared.H))
    whole = float(_energy(weight, shared.H))
    return LinearRecord(
        name=name,
        rows=packed.layout.rows,
        cols=packed.layout.cols,
        loss=loss,
        error=error / whole if whole > 0 else 0.0,
        tokens=shared.tokens,
        salient_columns=packed.salient_columns,
        bits_per_weight=packed.bits_per_weight,
        seconds=seconds,
    )


def _energy(W: Tensor, H: Tensor) -> Tensor:
    """tr(W H W^T) of a symmetric H, by halves: what lies above the diagonal counts twice."""
    m, half = len(H), len(H) // 2
    if m <= PANEL:
        return ((W @ H) * W).sum()
    left, right = W[:, :half], W[:, half:]
    above = ((left @ H[:half, half:]) * right).sum()
    return _energy(left, H[:half, :half]) + _energy(right, H[half:, half:]) + 2 * above


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the linear's name before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


@contextmanager
def _timed(seconds: Seconds, part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    setattr(seconds, part, getattr(seconds, part) + time.perf_counter() - start)
