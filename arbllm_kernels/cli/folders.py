"""Commands: convert, load-check, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .common import app, console


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .arb file, or a packed folder.")],
    out: Annotated[Path, typer.Argument(help="The folder, or the .arb file, to write.")],
    perplexity: Annotated[
        list[str] | None, typer.Option(help="For the model card: NAME=VALUE, such as 'WikiText-2=23.5'.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="For the model card: hub id of the dense model.")] = None,
    shard: Annotated[float, typer.Option(help="GB per safetensors file.", min=0.001)] = 5.0,
) -> None:
    """Turn a .arb file into a Hugging Face folder, ready for the hub, or back. No number changes.

    \b
    arbllm convert smol.arb ./SmolLM2-135M-arb --base-model HuggingFaceTB/SmolLM2-135M-Instruct
    arbllm convert ./SmolLM2-135M-arb smol.arb
    """
    from ..folder import convert as run

    card = {}
    for text in perplexity or []:
        name, _, value = text.rpartition("=")
        try:
            card[name] = float(value)
        except ValueError as error:
            raise InputError(f"--perplexity {text}: write NAME=VALUE, such as 'WikiText-2=23.5'") from error
    run(source, out, perplexity=card, base_model=base_model, shard=int(shard * 1e9))
    console.print(f"{source} -> {out}: the same tensors, byte for byte")


@app.command(name="load-check")
def load_check(
    path: Annotated[Path, typer.Argument(help="A .arb file or a packed folder.")],
) -> None:
    """Check that a packed model is sound, complete and runs here; exit 1 naming the first fault.

    \b
    arbllm load-check ./SmolLM2-135M-arb
    """
    from ..load_check import load_check as check

    found = check(path)
    without = "" if found.tokenizer else ", no tokenizer"
    console.print(
        f"{path}: loads and runs. {found.model}, {found.weights} packed weights of {found.bits_per_weight:.3f} true "
        f"bits, {found.dense} dense tensors{without}"
    )


@app.command()
def info() -> None:
    """Versions, processor, kernels: what a bug report needs.

    \b
    arbllm info
    """
    from ..info import main

    main()
