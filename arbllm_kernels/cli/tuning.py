"""Command: tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..calibration import SAMPLES, SEQLEN
from .common import Device, FileArgument, Threads, app, console, errors, set_threads


@app.command()
def tune(
    source: FileArgument,
    out: Annotated[Path, typer.Argument(help="The .arb file to write; may be the first with --overwrite.")],
    dense: Annotated[str, typer.Option(help="The checkpoint it was made from: folder, hub id or .gguf file.")],
    calib: Annotated[str, typer.Option(help="Text to compare them on, as for quantize.")] = "self",
    text_field: Annotated[str, typer.Option(help="Field of .jsonl and .parquet rows that holds the text.")] = "text",
    samples: Annotated[int, typer.Option(help="Windows of text.", min=1)] = SAMPLES,
    seqlen: Annotated[int, typer.Option(help="Tokens per window.", min=2)] = SEQLEN,
    seed: Annotated[int, typer.Option(help="Seed of the choice of windows and of their order.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="How often every window is seen.")] = None,
    rate: Annotated[float | None, typer.Option(help="Step size at the start.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Tune the scales of a packed file against the dense model; codes and size stay. Loads the dense model whole.

    \b
    arbllm tune smol.arb tuned.arb --dense ./SmolLM2-135M --calib corpus.txt
    """
    from ..tune import EPOCHS, RATE, Settings
    from ..tuning import tune_file

    set_threads(threads)
    settings = Settings(epochs=EPOCHS if epochs is None else epochs, rate=RATE if rate is None else rate, seed=seed)
    try:
        summary = tune_file(
            source,
            out,
            dense,
            calib,
            settings,
            samples=samples,
            seqlen=seqlen,
            seed=seed,
            text_field=text_field,
            resume=resume,
            overwrite=overwrite,
            device=device,
            progress=True,
        )
    except KeyboardInterrupt as stop:
        errors.print("arbllm: interrupted; finished steps are kept. The same command with --resume goes on.")
        raise typer.Exit(130) from stop
    console.print(summary.line())
