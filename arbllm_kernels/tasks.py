"""Zero-shot tasks through EleutherAI's lm-eval, for models in memory. Needs the extra `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .errors import InputError

# The seven question-answering tasks of the paper (section 4.1, figure 6) under lm-eval's names.
PAPER_TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande")


def task_names(text: str) -> list[str]:
    """Names from "a,b"; "paper" stands for the paper's seven. Raises InputError when there is none."""
    names = [name for part in text.split(",") for name in (PAPER_TASKS if part == "paper" else (part.strip(),)) if name]
    if not names:
        raise InputError("no task is named; write names as in arc_easy,piqa, or paper")
    return names


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    fewshot: int = 0,
    limit: int | None = None,
    batch_size: int = 1,
) -> dict[str, dict[str, float]]:
    """Run tasks and return every number that lm-eval gives.

    Args:
        tasks: names lm-eval knows, or of YAML files below `include_path`.
        fewshot: solved examples before each question.
        limit: use the first so many questions of each task; None is all.

    Returns:
        task -> metric -> value; "acc" and "acc_norm" are shares of right answers, "..._stderr" their standard errors.

    Raises:
        InputError: lm-eval is not installed, a task is unknown, or its data cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError("tasks need lm-eval: pip install 'arbllm_kernels[eval]'") from error
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"{include_path}: no such folder of tasks")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise InputError(f"lm-eval knows no task {unknown[0]!r}; give the folder of its YAML file with --include-path")
    wrapped: Any = HFLM
    try:
        found: Any = lm_eval.simple_evaluate(
            model=wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(_device(model))),
            tasks=list(tasks),
            num_fewshot=fewshot,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,  # standard errors of shares need none
            log_samples=False,
        )
    except (OSError, ConnectionError) as error:
        raise InputError(f"the data of a task cannot be had: {str(error).strip().splitlines()[0]}") from error
    return {task: _numbers(metrics) for task, metrics in found["results"].items()}


def mean_accuracy(results: dict[str, dict[str, float]]) -> float | None:
    """Mean of "acc" over the tasks that have one, as in the paper's figure 6; None if none has."""
    values = [metrics["acc"] for metrics in results.values() if "acc" in metrics]
    return sum(values) / len(values) if values else None


def _device(model: nn.Module) -> Any:
    return next(iter(model.state_dict().values())).device


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """lm-eval names a metric "acc,none", for the filter of answers it was taken with."""
    return {key.removesuffix(",none"): float(v) for key, v in metrics.items() if isinstance(v, float | int)}
