"""Command: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import Report
from .common import FileArgument, Threads, app, console, set_threads


@app.command()
def report(
    file: FileArgument,
    base: Annotated[str | None, typer.Option(help="The dense model it was made from: folder, .gguf or hub id.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write; FILE.html by default.")] = None,
    row: Annotated[str | None, typer.Option(help="MODULE:INDEX of the row whose distribution is shown.")] = None,
    measurements: Annotated[list[Path] | None, typer.Option(help="JSON of bench/quality.py. May be repeated.")] = None,
    threads: Threads = 0,
) -> None:
    """One HTML page with plots: errors, sizes, distributions, convergence. Complete in itself.

    \b
    arbllm report smol.arb --base ./SmolLM2-135M --out smol.html
    """
    from ..archive import read
    from ..report import write_report

    set_threads(threads)
    target = out or file.with_suffix(".html")
    progress = Report()
    with progress.bar("comparing with the base", len(read(file).header.layouts)):
        write_report(file, target, base=base, row=row, measurements=tuple(measurements or ()), advance=progress.advance)
    console.print(f"{target}: {target.stat().st_size:,} bytes")
