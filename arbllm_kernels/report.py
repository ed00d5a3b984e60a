"""`arbllm report`: one HTML page on a packed file, complete in itself. plots.py draws, this file measures and writes.

Figures 2 (distribution of a row before and after) and 3 (column deviations) of the paper need the dense model; so do
errors and convergence. The base's tensors are read one matrix at a time.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .archive import Archive, read
from .checkpoints import Checkpoint, open_checkpoint
from .config import QuantConfig
from .errors import InputError
from .inspect import Report, report
from .methods import quantize_weight
from .plots import column_plot, convergence_plot, error_plot, parts_plot, perplexity_plot, row_plot

PACKED_PARTS = ("signs", "bitmaps", "scales")
CONVERGENCE_ROWS = 64  # enough to see it; the solver runs once per number of iterations
LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class MatrixError:
    """How far a packed matrix is from the dense one: `error` = ||W - Q||^2 / ||W||^2 (Frobenius)."""

    name: str
    layer: int
    kind: str
    error: float
    bits: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A model's size and quality, measured elsewhere; a model that is not in a file has no size."""

    label: str
    megabytes: float | None
    perplexity: float


def write_report(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    row: str | None = None,
    measurements: Sequence[str | os.PathLike[str]] = (),
    advance: Callable[[float, str], None] = lambda amount, what: None,
) -> list[MatrixError]:
    """Write the page; returns the errors (empty without `base`).

    Args:
        path: the `.arb` file.
        out: the page.
        base: the dense checkpoint the file was made from: folder, `.gguf` file or hub id.
        row: "module:index" of the row to show; the matrix of median error and its first row by default.
        measurements: JSON files as bench/quality.py writes them: an object, or a list of them, with "method",
            "perplexity" and, but for the dense model's, "file_bytes".
        advance: told about progress, in matrices.

    Raises:
        InputError: matplotlib is missing, `base` does not fit the file, no such row, unreadable measurements.
        FormatError: the file is damaged.
    """
    archive = read(path)
    sizes = report(archive)
    figures = _size_figures(sizes)
    errors: list[MatrixError] = []
    if base is not None:
        checkpoint = open_checkpoint(base)
        errors = measure(archive, sizes, checkpoint, advance)
        name, index = _row(row, archive, errors)
        dense, packed = checkpoint.tensor(f"{name}.weight").float(), archive.packed(name).dequantize()
        figures += _matrix_figures(archive, name, index, dense, packed, errors)
    points = [point for file in measurements for point in read_measurements(file)]
    if points:
        caption = "Lower left is better; a line is a model of no given size. Measured elsewhere."
        figures.append(("Perplexity against size", perplexity_plot(points), caption))
    Path(out).write_text(_page(archive, sizes, figures, errors), encoding="utf-8")
    return errors


def _size_figures(sizes: Report) -> list[tuple[str, str, str]]:
    """(title, SVG, caption) of the figures that need the file alone."""
    megabytes = {name: size / 1e6 for name, size in sizes.parts.items()}
    whole = "Everything in the file, header and padding included."
    figures = [("Where the bytes are", parts_plot(megabytes, "MB"), whole)]
    weights = sum(w.shape[0] * w.shape[1] for w in sizes.weights)
    if weights:
        bits = {name: 8 * sizes.parts[name] / weights for name in PACKED_PARTS}
        caption = f"{sizes.bits_per_weight:.3f} true bits for each of the {weights:,} packed weights."
        figures.append(("Bits of a packed weight", parts_plot(bits, "bits"), caption))
    return figures


def measure(
    archive: Archive, sizes: Report, checkpoint: Checkpoint, advance: Callable[[float, str], None]
) -> list[MatrixError]:
    """The error of every packed matrix. Raises InputError when the checkpoint has another shape or name."""
    known = checkpoint.model.state_dict()
    errors = []
    for weight in sizes.weights:
        name = f"{weight.name}.weight"
        if name not in known or tuple(known[name].shape) != weight.shape:
            have = list(known[name].shape) if name in known else "nothing"
            raise InputError(f"{checkpoint.path}: has {have} at {name}, the file {list(weight.shape)}; is it the base?")
        dense = checkpoint.tensor(name).float()
        difference = dense - archive.packed(weight.name).dequantize()
        whole = float(dense.square().sum())
        number = LAYER.search(weight.name)
        errors.append(
            MatrixError(
                name=weight.name,
                layer=int(number[1]) if number else 0,
                kind=weight.name.rpartition(".")[2],
                error=float(difference.square().sum()) / whole if whole else 0.0,
                bits=weight.bits_per_weight,
            )
        )
        advance(1, weight.name)
    return errors


def convergence(dense: Tensor, cfg: QuantConfig) -> tuple[list[float], list[float]]:
    """(error, change of the row scales) after 0, 1, ... cfg.iters iterations of the first rows of a matrix, H = 1.

    The change is ||r_t - r_(t-1)|| / ||r_t||, 0 at the start.
    """
    rows = dense[:CONVERGENCE_ROWS]
    identity, whole = torch.eye(rows.shape[1]), float(rows.square().sum())
    errors, changes, before = [], [], None
    for iters in range(cfg.iters + 1):
        packed = quantize_weight(rows, identity, replace(cfg, iters=iters))
        errors.append(float((rows - packed.dequantize()).square().sum()) / whole)
        base = 1.0 if packed.row_base is None else packed.row_base.float()[:, None, None]
        scales = packed.row_scale.float() * base
        changes.append(0.0 if before is None else float((scales - before).norm() / scales.norm().clamp_min(1e-30)))
        before = scales
    return errors, changes


def read_measurements(path: str | os.PathLike[str]) -> list[Measurement]:
    """Raises InputError when the file is not as `write_report` says."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = values if isinstance(values, list) else [values]
        return [
            Measurement(
                label=str(r["method"]),
                megabytes=r["file_bytes"] / 1e6 if "file_bytes" in r else None,
                perplexity=float(r["perplexity"]),
            )
            for r in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{path}: must hold method, perplexity and file_bytes, as bench/quality.py writes them ({error!r})"
        raise InputError(text) from error


def _row(row: str | None, archive: Archive, errors: list[MatrixError]) -> tuple[str, int]:
    if row is None:
        return sorted(errors, key=lambda e: e.error)[len(errors) // 2].name, 0
    name, _, index = row.rpartition(":")
    layout = archive.header.layouts.get(name)
    if layout is None or not index.isdigit() or int(index) >= layout.rows:
        known = sorted(archive.header.layouts)[0]
        raise InputError(f"--row {row}: write MODULE:INDEX with a row of a packed matrix, such as {known}:0")
    return name, int(index)


def _matrix_figures(
    archive: Archive, name: str, index: int, dense: Tensor, packed: Tensor, errors: list[MatrixError]
) -> list[tuple[str, str, str]]:
    """(title, SVG, caption) of all figures that need the dense model."""
    cfg = archive.header.quant_config or QuantConfig(method=archive.header.layouts[name].method)
    shift = packed.mean(1) - dense.mean(1)
    history = convergence(dense, cfg)
    return [
        (
            "Error per layer and matrix",
            error_plot(errors),
            "‖W - Q‖² / ‖W‖², unweighted. The solver minimises another error, weighted by the layer's inputs.",
        ),
        (
            "Distribution of weights, before and after",
            row_plot(dense[index], packed[index], shift),
            f"Row {index} of {name}, and how far the mean of each of its {len(shift)} rows moved (paper, Figure 2).",
        ),
        (
            "Column deviations",
            column_plot(dense, packed),
            f"Mean magnitude of each column of {name}, before and after (paper, Figure 3).",
        ),
        (
            "Convergence",
            convergence_plot(*history),
            f"{cfg.label}, the first {min(CONVERGENCE_ROWS, len(dense))} rows of {name}, with the identity as Hessian: "
            "computed for this page. Iterations that change nothing are not drawn on the right.",
        ),
    ]


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 960px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
img { width: 100%; height: auto; } figcaption, .note { color: #555; font-size: .9rem; } figure { margin: 0; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def _page(archive: Archive, sizes: Report, figures: list[tuple[str, str, str]], errors: list[MatrixError]) -> str:
    cfg = archive.header.quant_config
    weights = sum(w.shape[0] * w.shape[1] for w in sizes.weights)
    facts: list[tuple[str, Any]] = [
        ("model", archive.header.config.get("model_type", "?")),
        ("method", cfg.label if cfg is not None else ", ".join(sorted({w.method for w in sizes.weights}))),
        ("file", f"{sizes.nbytes:,} bytes"),
        ("packed weights", f"{weights:,} in {len(sizes.weights)} matrices"),
        ("true bits per packed weight", f"{sizes.bits_per_weight:.3f}, everything counted"),
        ("nominal bits", f"{sizes.nominal_bits_per_weight:.3f}, sign bits alone, as papers count"),
    ]
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts)
    body = [f"<h1>{html.escape(Path(archive.path).name)}</h1>", f"<table>{rows}</table>"]
    if not errors:
        body.append('<p class="note">Errors and distributions need the dense model: --base MODEL.</p>')
    for title, image, caption in figures:
        body.append(
            f'<h2>{html.escape(title)}</h2><figure><img alt="{html.escape(title)}" src="{image}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    if errors:
        lines = "".join(
            f'<tr><td>{html.escape(e.name)}</td><td class="number">{e.error:.4f}</td>'
            f'<td class="number">{e.bits:.3f}</td></tr>'
            for e in errors
        )
        head = "<tr><th>matrix</th><th>error</th><th>true bits</th></tr>"
        body.append(
            f"<h2>All matrices</h2><details><summary>{len(errors)} rows</summary><table>{head}{lines}</table></details>"
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(Path(archive.path).name)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )
