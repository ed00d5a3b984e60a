"""Command: eval."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..progress import Report
from .common import Device, Dtype, ModelArgument, Threads, app, console, load, set_threads


@app.command(name="eval")
def evaluate(
    model: ModelArgument,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Perplexity on a text file, or wikitext2, ptb or c4 from the hub. May be repeated."),
    ] = None,
    seqlen: Annotated[int, typer.Option(help="Tokens per window (the paper: 2048).", min=2)] = 2048,
    stride: Annotated[int, typer.Option(help="Tokens between windows; 0: they do not overlap.", min=0)] = 0,
    windows: Annotated[int, typer.Option(help="Use the first so many windows; 0 is all.", min=0)] = 0,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks: names joined by commas, or paper for its seven.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder of YAML files of your own tasks.")] = None,
    fewshot: Annotated[int, typer.Option(help="Solved examples before each question.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="Use the first so many questions of a task; 0 is all.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Questions seen at once.", min=1)] = 1,
    dtype: Dtype = "fp32",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: Threads = 0,
) -> None:
    """Perplexity on texts, accuracy on tasks. Without either: perplexity on WikiText-2, as in the paper.

    \b
    arbllm eval smol.arb --text wiki.test.raw --seqlen 1024 --windows 32
    arbllm eval smol.arb --tasks arc_easy,piqa --limit 100
    arbllm eval smol.arb --text wikitext2 --text ptb --text c4 --tasks paper --json
    """
    from ..tasks import mean_accuracy, run_tasks, task_names

    names = task_names(tasks) if tasks else []
    texts = text or ([] if names else ["wikitext2"])
    set_threads(threads)
    loaded, tokenizer = load(model, dtype, device)
    result: dict[str, Any] = {"model": model, "dtype": dtype, "texts": [], "tasks": {}, "mean_accuracy": None}
    for source in texts:
        found = _perplexity(loaded, tokenizer, source, seqlen, stride or seqlen, windows)
        result["texts"].append(found)
        if not as_json:
            console.print(
                f"{source}: perplexity {found['perplexity']:.3f}  ({found['windows']} windows of {seqlen} tokens, "
                f"{dtype}, {found['seconds']} s)"
            )
    if names:
        result["tasks"] = run_tasks(
            loaded,
            tokenizer,
            names,
            include_path=include_path,
            fewshot=fewshot,
            limit=limit or None,
            batch_size=batch_size,
        )
        result["mean_accuracy"] = mean_accuracy(result["tasks"])
    if as_json:
        console.print_json(json.dumps(result))
        return
    for task, metrics in result["tasks"].items():
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        console.print(f"{task}: {numbers}")
    if result["mean_accuracy"] is not None and len(names) > 1:
        console.print(f"mean of acc: {result['mean_accuracy']:.4f}")


def _perplexity(loaded: Any, tokenizer: Any, source: str, seqlen: int, stride: int, windows: int) -> dict[str, Any]:
    """One row of the result, with a progress bar while it is measured."""
    from ..eval_data import hub_ids
    from ..evaluate import perplexity, text_ids, window_count

    ids = text_ids(source, tokenizer) if Path(source).exists() else hub_ids(source, tokenizer, seqlen)
    report, start = Report(), time.perf_counter()
    used = windows or max(window_count(len(ids), seqlen, stride), 0)
    with report.bar(f"perplexity, {source}", used):
        value = perplexity(
            loaded,
            ids,
            seqlen,
            stride=stride,
            windows=windows or None,
            progress=lambda done, total, now: report.advance(1, f"{source}: {now:.2f}"),
        )
    return {
        "text": source,
        "tokens": len(ids),
        "seqlen": seqlen,
        "stride": stride,
        "windows": used,
        "perplexity": value,
        "seconds": round(time.perf_counter() - start, 2),
    }
