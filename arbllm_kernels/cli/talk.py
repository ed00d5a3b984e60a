"""Command: chat."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..errors import ArbError, InputError
from .common import Device, Dtype, ModelArgument, Threads, app, errors, load, set_threads

HELP = "An empty line or Ctrl-D ends it; /clear forgets what was said."


@app.command()
def chat(
    model: ModelArgument,
    system: Annotated[str | None, typer.Option(help="A system message, first of all.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens per answer.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0.0)] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Talk to a model that has a chat template. It writes word by word and remembers the conversation.

    \b
    arbllm chat smol.arb --system "Answer in one sentence."
    """
    set_threads(threads)
    loaded, tokenizer = load(model, dtype, device)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{model}: its tokenizer has no chat template, so it cannot chat; use arbllm generate")
    start = [] if system is None else [{"role": "system", "content": system}]
    messages = list(start)
    if sys.stdin.isatty():
        errors.print(HELP)
    while line := _ask():
        if line == "/clear":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        answer = _answer(loaded, tokenizer, messages, max_new_tokens, temperature, seed)
        if answer is None:
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    """The next line; "" at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _answer(
    loaded: Any, tokenizer: Any, messages: list[dict[str, str]], max_new_tokens: int, temperature: float, seed: int
) -> str | None:
    """Write the answer as it comes; None, with a sentence why, when the conversation has outgrown the model."""
    from ..evaluate import generate_stream

    pieces = []
    try:
        for piece in generate_stream(loaded, tokenizer, messages, max_new_tokens, temperature, seed):
            sys.stdout.write(piece)
            sys.stdout.flush()
            pieces.append(piece)
    except KeyboardInterrupt:  # enough of this answer
        pass
    except ArbError as error:
        errors.print(f"arbllm: {error}; /clear forgets what was said", style="red", markup=False)
        return None
    sys.stdout.write("\n")
    return "".join(pieces)
