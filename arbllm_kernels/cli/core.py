"""Commands: quantize, generate, inspect, verify."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..calibration import SAMPLES, SEQLEN
from ..config import DEFAULT_PRESET, METHODS, METRICS, PAPER_METHODS, PRESETS, SCALE_DTYPES, QuantConfig
from ..errors import InputError
from .common import (
    Device,
    Dtype,
    FileArgument,
    ModelArgument,
    Threads,
    app,
    console,
    errors,
    load,
    print_table,
    set_threads,
)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id, or a .gguf file.")],
    out: Annotated[Path, typer.Argument(help="The .arb file to write.")],
    preset: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(PRESETS)}, or none for {DEFAULT_PRESET}; options change it.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Presets best and compact: true bits per weight to stay within.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(METHODS)}, with the preset's settings that it belongs to.")
    ] = None,
    cgb: Annotated[bool | None, typer.Option(help="Column-group bitmap: groups among salient columns too.")] = None,
    groups: Annotated[int | None, typer.Option(help="Magnitude groups: 1, 2 or 4.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Columns per block.")] = None,
    iters: Annotated[int | None, typer.Option(help="Refinement iterations.")] = None,
    salient_order: Annotated[int | None, typer.Option(help="Binary planes on salient columns: 1 or 2.")] = None,
    metric: Annotated[str | None, typer.Option(help=f"Sensitivity: {' or '.join(METRICS)}.")] = None,
    damp: Annotated[float | None, typer.Option(help="Share of mean(diag H) added to the diagonal of H.")] = None,
    scale_dtype: Annotated[str | None, typer.Option(help=f"Storage of scales: {' or '.join(SCALE_DTYPES)}.")] = None,
    calib: Annotated[
        str,
        typer.Option(help="Calibration text: a .txt, .jsonl or .parquet file, hub:NAME[[:config]:split], or self."),
    ] = "self",
    text_field: Annotated[str, typer.Option(help="Field of .jsonl and .parquet rows that holds the text.")] = "text",
    samples: Annotated[int, typer.Option(help="Calibration windows (the paper: 128).", min=1)] = SAMPLES,
    seqlen: Annotated[int, typer.Option(help="Tokens per window (the paper: 2048).", min=2)] = SEQLEN,
    seed: Annotated[int, typer.Option(help="Seed of the choice of windows, and of self-written text.")] = 0,
    embed_dtype: Annotated[
        str,
        typer.Option(
            help="Embeddings, norms, head: auto (the checkpoint's own), fp32, bf16, fp16; int8: 8-bit embeddings, head."
        ),
    ] = "auto",
    skip: Annotated[list[str] | None, typer.Option(help="Leave Linears dense whose name matches this regex.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Then tune the scales against the dense model, which is loaded whole.")
    ] = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    threads: Threads = 0,
) -> None:
    """Quantize a checkpoint to a packed .arb file.

    \b
    arbllm quantize ./SmolLM2-135M smol.arb
    arbllm quantize model.gguf out.arb --calib corpus.txt --samples 128 --seqlen 2048
    arbllm quantize model.gguf small.arb --preset compact
    arbllm quantize org/model out.arb --method arb-x --no-cgb --resume
    """
    from ..pipeline import quantize_checkpoint
    from ..tuning import is_interrupted, tune_file

    set_threads(threads)
    given: dict[str, Any] = {
        "bits": bits,
        "method": method,
        "cgb": cgb,
        "groups": groups,
        "block_size": block_size,
        "iters": iters,
        "salient_order": salient_order,
        "metric": metric,
        "damp": damp,
        "scale_dtype": scale_dtype,
    }
    cfg = dataclasses.replace(
        _start(preset, method), **{name: value for name, value in given.items() if value is not None}
    )
    console.print(f"{cfg.label}: {model} -> {out}")
    text: dict[str, Any] = {"samples": samples, "seqlen": seqlen, "seed": seed, "text_field": text_field}
    tuning = tune and resume and is_interrupted(out)
    try:
        if not tuning:
            summary = quantize_checkpoint(
                model,
                out,
                cfg,
                calib,
                **text,
                embed_dtype=embed_dtype,
                skip=tuple(skip or ()),
                resume=resume,
                overwrite=overwrite,
                device=device,
                progress=True,
            )
            console.print(summary.table())
        if tune:
            tuned = tune_file(
                out, out, model, calib, **text, resume=tuning, overwrite=True, device=device, progress=True
            )
            console.print(tuned.line())
    except KeyboardInterrupt as stop:
        errors.print("arbllm: interrupted; finished layers and steps are kept. The same command with --resume goes on.")
        raise typer.Exit(130) from stop
    _print_split(out)


def _start(preset: str | None, method: str | None) -> QuantConfig:
    """The preset that the other options change: the one asked for, or the one that a method belongs to."""
    if method is None:
        return QuantConfig.preset(preset or DEFAULT_PRESET)
    start = QuantConfig.preset(preset or ("paper" if method in PAPER_METHODS else DEFAULT_PRESET))
    if (start.method in PAPER_METHODS) != (method in PAPER_METHODS):
        raise InputError(f"--preset {preset} and --method {method} do not go together: leave one out")
    return start


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens to write.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    chat: Annotated[bool, typer.Option(help="Wrap the prompt in the model's chat template, if it has one.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write text, token by token.

    \b
    arbllm generate smol.arb "The capital of France is" -n 40
    arbllm generate smol.arb "Explain rainbows." --chat --temperature 0.7
    """
    from ..evaluate import generate_stream

    set_threads(threads)
    loaded, tokenizer = load(model, dtype, device)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not chat:
        sys.stdout.write(text)
    for piece in generate_stream(
        loaded, tokenizer, text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, chat=chat
    ):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def inspect(
    file: FileArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a file holds: true bits per weight of every tensor, and where its bytes go.

    \b
    arbllm inspect smol.arb
    """
    from ..inspect import inspect as read_report

    report = read_report(file)
    if as_json:
        totals = {"parts": report.parts, "bits_per_weight": report.bits_per_weight}
        console.print_json(json.dumps(dataclasses.asdict(report) | totals))
        return
    table = Table("weight", "out x in", "method", "block", "groups", "salient", "bits", box=None, header_style="bold")
    for w in report.weights:
        rows, cols = w.shape
        salient = f"{w.salient_columns} ({w.salient_columns / cols:.1%})"
        bits = f"{w.bits_per_weight:.3f}"
        table.add_row(w.name, f"{rows} x {cols}", w.method, str(w.block_size), str(w.groups), salient, bits)
    print_table(table)
    _print_split(file)


@app.command()
def verify(file: FileArgument) -> None:
    """Check every checksum, shape and value of a file; exit 1 naming the first fault.

    \b
    arbllm verify smol.arb
    """
    from ..container import verify as check

    start = time.perf_counter()
    report = check(file)
    console.print(
        f"{file}: good. {len(report.weights)} packed weights, {report.nbytes / 1e6:.1f} MB, "
        f"{time.perf_counter() - start:.1f} s"
    )


def _print_split(file: Path) -> None:
    from ..inspect import inspect as read_report

    report = read_report(file)
    table = Table("part", "bytes", "share", box=None, header_style="bold")
    for name, size in report.parts.items():
        table.add_row(name, f"{size:,}", f"{size / report.nbytes:.1%}")
    table.add_row("file", f"{report.nbytes:,}", "100.0%")
    print_table(table)
    console.print(
        f"{report.bits_per_weight:.3f} true bits per quantized weight, everything counted "
        f"(the paper's nominal figure, sign bits alone: {report.nominal_bits_per_weight:.3f})"
    )
