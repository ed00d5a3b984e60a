"""`tune_file`: tune the scales of an `.arb` file (tune.py), resumable; the file keeps its size.

Beside the output lies the folder `<out>.tuning` while it works: what the run depends on, the token ids, and the factors
after the last finished step. A resumed run gives the identical file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import container
from .archive import read
from .calibration import SAMPLES, SEQLEN, check_source
from .checkpoints import open_checkpoint
from .device import device_of, roomy
from .linear import ARBLinear
from .models import check_ids, check_length
from .packed import PARTS
from .pipeline import bits_per_weight, check_out, ids_digest, versions, weights_of, where, window_ids
from .progress import Report
from .tune import Settings, State, tune_model
from .workdir import WorkFolder

STEP = "step"


@dataclass(frozen=True, kw_only=True)
class TuneSummary:
    """What `tune_file` made.

    Attributes:
        path: the file. bits_per_weight: what it was before, too.
        divergence: nats per token from the dense model, the mean of each epoch as it was seen.
        seconds: of this run, without what an interrupted one did.
    """

    path: Path
    bits_per_weight: float
    divergence: tuple[float, ...]
    seconds: float

    def line(self) -> str:
        seen = " -> ".join(f"{value:.4f}" for value in self.divergence)
        return (
            f"{self.path}: scales tuned in {self.seconds:.0f} s, {self.bits_per_weight:.3f} bits per binarized weight "
            f"as before; divergence from the dense model, epoch by epoch: {seen} nats per token"
        )


def tune_file(
    source: str | Path,
    out: str | Path,
    dense: str | Path,
    calibration: str | Path | Tensor,
    settings: Settings | None = None,
    *,
    samples: int = SAMPLES,
    seqlen: int = SEQLEN,
    seed: int = 0,
    text_field: str = "text",
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> TuneSummary:
    """Tune the scales of `source`, an `.arb` file, and write the result.

    Args:
        out: the file to write; may be `source` itself, with `overwrite`.
        dense: the checkpoint that `source` was made from. It is loaded whole, in float32.
        calibration: what `calibration_ids` takes, or token ids, int64 [samples, seqlen].
        samples, seqlen, seed, text_field: see `calibration_ids`; not used when ids are given.
        resume: continue the run that left `<out>.tuning`.
        overwrite: replace an existing `out`.
        device: where both models are, see `device_of`.

    Raises:
        InputError, CalibrationError, UnsupportedModelError, FormatError: before anything is written.
    """
    source, out, settings = Path(source), Path(out), settings or Settings(seed=seed)
    report, work, device = Report(show=progress), _work(out), device_of(device)
    check_out(out, overwrite)
    work.check(resume)
    checksums = read(source).checksums
    checkpoint = open_checkpoint(dense)
    if not isinstance(calibration, Tensor):
        check_source(calibration)
        check_length(seqlen, checkpoint.model)
    start = time.perf_counter()
    found, described = window_ids(
        checkpoint, calibration, samples, seqlen, seed, text_field, work if resume else None, report, device
    )
    check_ids(found, checkpoint.model)
    wanted, device = device, roomy(device, 2 * 4 * weights_of(checkpoint))  # both models, float32 at most
    if device != wanted:
        report.note(f"The models are tuned on the CPU: {wanted} has no room for two of them in float32.")
    state = {
        "source": checksums,
        "dense": checkpoint.fingerprint(),
        "calibration": described,
        "calibration ids": ids_digest(found),
        "settings": {"epochs": settings.epochs, "rate": settings.rate, "seed": settings.seed},
        "versions": versions(),
        **where(device),
    }
    if resume:
        work.compare(state)
    model = container.load(source, dtype=torch.float32)[0].to(device)
    if not resume:
        work.start(state, found)
    dense_model = checkpoint.materialize(torch.float32).to(device)
    divergence = tune_model(model, dense_model, found, settings, progress=progress, keeper=_Folder(work))
    stored, tokenizer = container.load(source)  # as the file has it: dense tensors in their own type
    for name, layer in stored.named_modules():
        if isinstance(layer, ARBLinear):
            for part in PARTS:
                tuned = model.get_submodule(name)._buffers[part]
                layer._buffers[part] = None if tuned is None else tuned.cpu()
    container.save(stored, out, tokenizer)
    work.remove()
    return TuneSummary(
        path=out,
        bits_per_weight=bits_per_weight(stored),
        divergence=tuple(divergence),
        seconds=time.perf_counter() - start,
    )


def is_interrupted(out: str | Path) -> bool:
    """Whether an unfinished run has left its folder."""
    return _work(out).path.exists()


def _work(out: str | Path) -> WorkFolder:
    return WorkFolder(Path(out), ".tuning")


class _Folder:
    """tune.Keeper in a work folder."""

    def __init__(self, work: WorkFolder) -> None:
        self._work = work

    def read(self) -> State | None:
        return self._work.read_tensors(STEP)

    def write(self, state: State) -> None:
        self._work.write_tensors(STEP, state)
