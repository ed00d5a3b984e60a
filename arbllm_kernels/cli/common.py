"""What all commands share: the application, its consoles, option types and small helpers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..errors import ArbError

app = typer.Typer(
    help="Binarize a language model, store it truly packed, run it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

ModelArgument = Annotated[str, typer.Argument(help="A .arb file, a Hugging Face folder or hub id, or a .gguf file.")]
FileArgument = Annotated[Path, typer.Argument(help="A .arb file.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.", min=0)]
Device = Annotated[str, typer.Option(help="auto (a CUDA device, where torch finds one), cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="Type of activations and dense tensors: auto, fp32, bf16 or fp16.")]


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


def print_table(table: Table) -> None:
    """As wide as it needs to be: a name cut short is of no use, in a pipe least of all."""
    natural = console.measure(table, options=console.options.update(width=1000)).maximum
    Console(highlight=False, width=natural).print(table)


def load(model: str, dtype: str, device: str) -> tuple[Any, Any]:
    """(model, tokenizer). Raises ArbError when no tokenizer is stored with the model."""
    from ..evaluate import load_any

    loaded, tokenizer = load_any(model, dtype, device)
    if tokenizer is None:
        raise ArbError(f"{model}: no tokenizer is stored with this model, so it can neither read nor write text")
    return loaded, tokenizer


def set_threads(threads: int) -> None:
    """0 leaves torch's choice."""
    if threads:
        import torch

        torch.set_num_threads(threads)
