"""What a long run shows: a bar with the time left, a line per finished layer. Silent unless stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True, kw_only=True)
class LinearRecord:
    """How one linear was quantized.

    Attributes:
        name: full module name.
        rows, cols: out_features, in_features.
        loss: proxy loss 1/2 sum E^2 of the solver.
        error: tr((W - Q) H (W - Q)^T) / tr(W H W^T), 0 is perfect, 1 is as bad as Q = 0.
        tokens: calibration tokens that reached it.
        salient_columns: salient columns in all blocks together.
        bits_per_weight: true storage, everything counted.
        seconds: time in the solver.
    """

    name: str
    rows: int
    cols: int
    loss: float
    error: float
    tokens: int
    salient_columns: int
    bits_per_weight: float
    seconds: float


@dataclass
class Seconds:
    """Where the time went. `prepare` opens, checks and tokenizes; `forward` includes loading a layer's weights; `store`
    is packing into files."""

    prepare: float = 0.0
    forward: float = 0.0
    hessian: float = 0.0
    factor: float = 0.0
    solve: float = 0.0
    store: float = 0.0


@dataclass
class Report:
    """Collects a run's records and shows them as they come.

    `show`: True, False, or None for "if stderr is a terminal".
    """

    show: bool | None = None
    records: list[LinearRecord] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)
    notes: list[str] = field(default_factory=list)
    _bar: Progress | None = None

    @property
    def shown(self) -> bool:
        return sys.stderr.isatty() if self.show is None else self.show

    def note(self, sentence: str) -> None:
        """Keep a sentence for the summary and show it."""
        self.notes.append(sentence)
        self._print(sentence)

    @contextmanager
    def bar(self, what: str, total: float) -> Iterator[Progress | None]:
        """A progress bar over `total` units of work; advance it with `advance`."""
        if not self.shown:
            yield None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as self._bar:
            self._bar.add_task(what, total=total)
            yield self._bar
        self._bar = None

    def advance(self, amount: float = 1.0, what: str | None = None) -> None:
        """Move the current bar on, and say what is being worked on."""
        if self._bar is not None:
            task = self._bar.task_ids[-1]
            self._bar.update(task, advance=amount, description=what or self._bar.tasks[-1].description)

    def layer_done(self, index: int, layers: int, records: list[LinearRecord]) -> None:
        """Record a layer's linears and print their errors."""
        self.records.extend(records)
        errors = ", ".join(f"{r.name.rsplit('.', 1)[-1]} {r.error:.4f}" for r in records[:16])
        more = f" and {len(records) - 16} more" if len(records) > 16 else ""
        self._print(f"layer {index + 1}/{layers}, relative error: {errors}{more}")

    def _print(self, text: str) -> None:
        if self.shown:
            console = self._bar.console if self._bar is not None else Console(stderr=True)
            console.print(text, highlight=False, markup=False, soft_wrap=True)
