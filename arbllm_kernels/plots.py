"""The plots of report.py, each as a data: URL of an SVG. Needs the extra `report` (matplotlib)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from .report import MatrixError, Measurement

BEFORE, AFTER = "#4477aa", "#cc6644"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
WIDTH, HEIGHT = 9.0, 3.6  # inches
BINS = 60


def parts_plot(parts: Mapping[str, float], unit: str) -> str:
    """One bar of a whole, by part."""
    figure, (axes,) = _figure(height=1.8)
    start, total = 0.0, sum(parts.values())
    for colour, (name, size) in zip(COLOURS, parts.items(), strict=False):
        label = f"{name}: {size:.2f} {unit} ({size / total:.1%})"
        axes.barh([0], [size], left=start, color=colour, label=label)
        start += size
    axes.set(yticks=[], xlabel=unit, xlim=(0, start))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=3, frameon=False, fontsize=9)
    return _svg(figure)


def error_plot(errors: Sequence[MatrixError]) -> str:
    """One line per kind of matrix over the layers."""
    figure, (axes,) = _figure()
    kinds = list(dict.fromkeys(e.kind for e in errors))
    for i, kind in enumerate(kinds):
        points = sorted((e.layer, e.error) for e in errors if e.kind == kind)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=COLOURS[i % len(COLOURS)], label=kind)
    axes.set(xlabel="layer", ylabel="relative error", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return _svg(figure)


def row_plot(before: Tensor, after: Tensor, shift: Tensor) -> str:
    """Left: both distributions of one row, with their means. Right: how far every row's mean moved."""
    figure, (left, right) = _figure(columns=2)
    low, high = float(min(before.min(), after.min())), float(max(before.max(), after.max()))
    for values, colour, label in ((before, BEFORE, "dense"), (after, AFTER, "binarized")):
        left.hist(values.tolist(), bins=BINS, range=(low, high), color=colour, alpha=0.6, label=label)
        left.axvline(float(values.mean()), color=colour, linestyle="--", linewidth=1.2)
    left.set(xlabel="weight (dashed: mean)", ylabel="count")
    left.legend(frameon=False, fontsize=9)
    right.hist(shift.tolist(), bins=BINS, color=AFTER)
    right.axvline(0, color="#222222", linewidth=0.8)
    right.set(xlabel="mean after - mean before", ylabel="rows")
    right.locator_params(axis="x", nbins=5)  # such small numbers have long labels
    return _svg(figure)


def column_plot(before: Tensor, after: Tensor) -> str:
    """Mean magnitude of every column, in the columns' order and sorted by the dense one."""
    figure, (left, right) = _figure(columns=2)
    dense, packed = before.abs().mean(0), after.abs().mean(0)
    order = torch.argsort(dense, descending=True)
    for axes, index, label in ((left, None, "column"), (right, order, "column, largest first")):
        for values, colour, name in ((packed, AFTER, "binarized"), (dense, BEFORE, "dense")):
            axes.plot((values if index is None else values[index]).tolist(), color=colour, linewidth=0.8, label=name)
        axes.set(xlabel=label, ylabel="mean magnitude", ylim=(0, None))
    right.legend(frameon=False, fontsize=9)
    return _svg(figure)


def convergence_plot(errors: Sequence[float], changes: Sequence[float]) -> str:
    """Error and change of the row scales over iterations."""
    figure, (left, right) = _figure(columns=2)
    left.plot(range(len(errors)), errors, marker="o", markersize=3, color=BEFORE)
    left.set(xlabel="iterations", ylabel="relative error")
    right.plot(range(1, len(changes)), changes[1:], marker="o", markersize=3, color=AFTER)
    left.ticklabel_format(axis="y", useOffset=False)
    right.set(xlabel="iterations", ylabel="change of row scales", xlim=left.get_xlim())
    if any(changes):
        right.set_yscale("log", nonpositive="mask")  # what no longer changes has no logarithm
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure)


def perplexity_plot(points: Sequence[Measurement]) -> str:
    """Every measured model as a labelled point; one without a size as a line."""
    figure, (axes,) = _figure(height=4.5)
    sized = [(p, p.megabytes) for p in points if p.megabytes is not None]
    axes.scatter([size for _, size in sized], [p.perplexity for p, _ in sized], color=BEFORE)
    near = 0.1 * (max(size for _, size in sized) - min(size for _, size in sized)) if sized else 0.0
    for point in (p for p in points if p.megabytes is None):
        axes.axhline(point.perplexity, color=AFTER, linestyle="--", linewidth=1)
        axes.annotate(
            f"{point.label} {point.perplexity:.4g}",
            (0.01, point.perplexity),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
        )
    for point, size in sized:
        below = [p for p, other in sized if p.perplexity < point.perplexity and abs(other - size) < near]
        axes.annotate(
            f"{point.label} {point.perplexity:.4g}",
            (size, point.perplexity),
            xytext=(6, 5 if below else -11),  # away from a neighbour's label
            textcoords="offset points",
            fontsize=9,
        )
    axes.set(xlabel="file, MB", ylabel="perplexity", yscale="log")
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.margins(x=0.25, y=0.15)
    return _svg(figure)


def _figure(*, columns: int = 1, height: float = HEIGHT) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display
    except ImportError as error:
        raise InputError("a report needs matplotlib: pip install 'arbllm_kernels[report]'") from error
    figure: Any = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "arb"}):  # equal plots give equal bytes
        figure.savefig(content, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"
