"""From a model to packed weights: `quantize_model` works in memory, `quantize_checkpoint` from disk to an `.arb` file.

Both run the same layer loop (layer_loop.py) and give the same bits. Streaming holds one decoder layer in float32, its
Hessians and the activations of the calibration samples, [samples, seqlen, hidden] float32; never the whole model. Only
calibration text written by the model itself needs it whole for a while, in half precision unless it is small.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import container
from .calibration import SAMPLES, SEQLEN, calibration_ids, check_source, is_self
from .checkpoints import Checkpoint, open_checkpoint
from .config import QuantConfig
from .device import device_of, roomy
from .errors import CalibrationError, InputError
from .layer_loop import quantize_layers
from .linear import ARBLinear
from .models import check_finite, check_ids, check_length, check_skip, dense_share, find_layers, layer_linears
from .progress import LinearRecord, Report, Seconds
from .stores import MemoryStore, StreamStore, cast
from .table import round_embeddings
from .workdir import WorkFolder

ROUNDED = "int8"
EMBED_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SMALL_MODEL = 1 << 30  # bytes in float32 up to which a model writes its own calibration text in float32
LEAST_BITS = 2.0  # no method stores less per weight; used to refuse a disk that is obviously too small


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `quantize_checkpoint` made.

    Attributes:
        path: the `.arb` file; file_bytes: its size.
        bits_per_weight: true bits of all binarized weights together, without embeddings and other dense tensors.
        linears: one record per linear, in order.
        seconds: where the time went (a resumed run counts its own time only).
        notes: sentences about what the user should know.
    """

    path: Path
    file_bytes: int
    bits_per_weight: float
    linears: tuple[LinearRecord, ...]
    seconds: Seconds
    notes: tuple[str, ...]

    def table(self) -> str:
        """A few lines of plain text: per kind of linear the mean error and bits, then times, size and notes."""
        kinds: dict[str, list[LinearRecord]] = {}
        for record in self.linears:
            kinds.setdefault(record.name.rsplit(".", 1)[-1], []).append(record)
        width = max(map(len, kinds), default=0)
        lines = [f"{'linear':{width}}  count  relative error  salient  bits"]
        for kind, records in kinds.items():
            n = len(records)
            error = sum(r.error for r in records) / n
            salient = sum(r.salient_columns for r in records) / sum(r.cols for r in records)
            weights = sum(r.rows * r.cols for r in records)
            bits = sum(r.bits_per_weight * r.rows * r.cols for r in records) / weights
            lines.append(f"{kind:{width}}  {n:5}  {error:14.4f}  {salient:7.1%}  {bits:.3f}")
        times = ", ".join(f"{name} {value:.1f}" for name, value in dataclasses.asdict(self.seconds).items())
        lines.append(f"seconds: {times}")
        lines.append(f"{self.path}: {self.file_bytes:,} bytes, {self.bits_per_weight:.3f} bits per binarized weight")
        return "\n".join([*lines, *self.notes])


def quantize_model(
    model: nn.Module,
    calib_ids: Tensor,
    cfg: QuantConfig,
    *,
    skip: Sequence[str] = (),
    progress: bool | None = None,
    records: list[LinearRecord] | None = None,
) -> nn.Module:
    """Binarize every nn.Linear inside the decoder layers of a causal LM, in place.

    Args:
        model: a transformers causal LM (or a module called like one) in any float dtype.
        calib_ids: int64 [samples, seqlen].
        skip: regular expressions; linears in whose full name one is found stay dense, e.g. "o_proj$".
        progress: show a progress bar; None: if stderr is a terminal.
        records: a list that receives one record per linear.

    Returns:
        The same model in eval mode; each quantized linear is an ARBLinear with its old bias.

    Raises:
        UnsupportedModelError: no decoder layers holding nn.Linear, or they are not called one after the other.
        InputError: bad ids, NaN or Inf weights, quantized layers already, useless `skip`. The model is unchanged.
    """
    report = Report(show=progress)
    _check_model(model, skip)
    check_ids(calib_ids, model)
    store = MemoryStore(model)
    for name, tensor in store.layers.state_dict().items():
        check_finite(f"{store.name}.{name}", tensor)
    model.eval()
    sentence = _dense_sentence(store.layers)
    try:
        quantize_layers(store, calib_ids, cfg, skip, report)
    finally:
        store.release()
    if sentence is not None:
        warnings.warn(sentence, stacklevel=2)
    if records is not None:
        records.extend(report.records)
    if "transformers" in sys.modules:  # or it cannot be one of its models
        from .hf import attach

        attach(model, cfg)
    return model


def bits_per_weight(model: nn.Module) -> float:
    """True bits per weight of all ARBLinear weights together. Raises InputError if there are none."""
    packed = [module.packed for module in model.modules() if isinstance(module, ARBLinear)]
    if not packed:
        raise InputError(f"{type(model).__name__} holds no ARBLinear")
    return 8 * sum(pw.nbytes for pw in packed) / sum(pw.layout.rows * pw.layout.cols for pw in packed)


def quantize_checkpoint(
    source: str | Path,
    out: str | Path,
    cfg: QuantConfig,
    calibration: str | Path | Tensor,
    *,
    samples: int = SAMPLES,
    seqlen: int = SEQLEN,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    embed_dtype: str = "auto",
    skip: Sequence[str] = (),
    text_field: str = "text",
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Summary:
    """Quantize a checkpoint on disk into one `.arb` file, one decoder layer at a time.

    Args:
        source: local Hugging Face folder, `.gguf` file, or hub id (the only case that uses the network).
        out: the file to write; its work folder `<out>.partial` lies beside it until it is complete.
        calibration: what `calibration_ids` takes, or token ids, int64 [samples, seqlen].
        samples, seqlen, seed, text_field: see `calibration_ids`; not used when ids are given.
        resume: continue the run that left `<out>.partial`; the file is identical to an uninterrupted run's.
        overwrite: replace an existing `out`.
        embed_dtype: "fp16", "bf16", "fp32" for embeddings, norms, head and other dense tensors; "auto": the
            checkpoint's own, fp16 where that is float32 or GGUF; "int8": as auto, but embedding and head in 8 bits with
            a scale per row (table.py).
        device: where layers run and are quantized, one at a time: "auto", "cpu" or a CUDA device, see `device_of`.
        skip, progress: see `quantize_model`.

    Raises:
        InputError, CalibrationError, UnsupportedModelError: before anything is written, naming what to change.
    """
    begun = time.perf_counter()
    out, report, device = Path(out), Report(show=progress), device_of(device)
    work = WorkFolder(out)
    check_out(out, overwrite)
    work.check(resume)
    checkpoint = open_checkpoint(source)
    _check_model(checkpoint.model, skip)
    if not isinstance(calibration, Tensor):
        check_source(calibration)
        check_length(seqlen, checkpoint.model)
    if checkpoint.note:
        report.note(checkpoint.note)
    dtype = _embed_dtype(embed_dtype, checkpoint)
    ids, described = window_ids(
        checkpoint, calibration, samples, seqlen, seed, text_field, work if resume else None, report, device
    )
    check_ids(ids, checkpoint.model)
    state = _state(checkpoint, cfg, skip, dtype, described, ids, device)
    if resume:
        work.compare(state)
    packed = _packed_names(checkpoint, skip)
    _check_space(checkpoint, out, dtype, packed)
    _check_weights(checkpoint, dtype, packed, report)
    if not resume:
        work.start(state, ids)
    report.seconds.prepare = time.perf_counter() - begun
    store = StreamStore(checkpoint, work, device)
    sentence = _dense_sentence(store.layers)
    if sentence is not None:
        report.note(sentence)
    quantize_layers(store, ids, cfg, skip, report)
    return _finish(store, checkpoint, work, out, cfg, dtype, embed_dtype == ROUNDED, report)


def _finish(
    store: StreamStore,
    checkpoint: Checkpoint,
    work: WorkFolder,
    out: Path,
    cfg: QuantConfig,
    dtype: torch.dtype,
    rounded: bool,
    report: Report,
) -> Summary:
    model = store.assemble(dtype)
    if rounded:
        errors = round_embeddings(model)
        listed = ", ".join(f"{name} (relative error {error:.2%})" for name, error in errors.items())
        report.note(f"In 8 bits: {listed or 'nothing; embedding and head are no plain nn.Embedding and nn.Linear'}.")
    _set_config(model, checkpoint, dtype)
    container.save(model, out, checkpoint.tokenizer(), quant_config=cfg)
    bits = bits_per_weight(model)
    work.remove()
    return Summary(
        path=out,
        file_bytes=out.stat().st_size,
        bits_per_weight=bits,
        linears=tuple(report.records),
        seconds=report.seconds,
        notes=tuple(report.notes),
    )


def _set_config(model: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """The config as the file will hold it: dense dtype, and the checkpoint's generation defaults."""
    from transformers import GenerationConfig

    model.config.dtype = dtype
    if (checkpoint.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)


def window_ids(
    checkpoint: Checkpoint,
    calibration: str | Path | Tensor,
    samples: int,
    seqlen: int,
    seed: int,
    text_field: str,
    resumed: WorkFolder | None,
    report: Report,
    device: torch.device,
) -> tuple[Tensor, str]:
    """(calibration ids, a description for the fingerprint)."""
    if isinstance(calibration, Tensor):
        return calibration, "given token ids"
    described = f"{calibration}, {samples} x {seqlen} tokens, seed {seed}"
    if is_self(calibration) and resumed is not None:
        return resumed.calibration(), described
    tokenizer, model = checkpoint.tokenizer(), None
    if is_self(calibration):
        dtype = _writing_dtype(checkpoint)
        name, place = str(dtype).removeprefix("torch."), roomy(device, dtype.itemsize * weights_of(checkpoint))
        report.note(f"The model is loaded whole, in {name} on {place}, while it writes its own calibration text.")
        model = checkpoint.materialize(dtype).to(place)
    elif tokenizer is None:
        raise CalibrationError(f"{checkpoint.path}: holds no tokenizer, so text cannot be tokenized; use 'self'")
    if model is None:
        return calibration_ids(calibration, tokenizer, samples, seqlen, seed, text_field=text_field), described
    with report.bar("calibration text", samples * seqlen):
        return calibration_ids(calibration, tokenizer, samples, seqlen, seed, model, advance=report.advance), described


def _writing_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """float32 for a small model (without bf16 units a CPU writes several times faster in it), else half precision."""
    return torch.float32 if 4 * weights_of(checkpoint) <= SMALL_MODEL else torch.bfloat16


def weights_of(checkpoint: Checkpoint) -> int:
    """How many numbers the whole model has."""
    names, state = list(checkpoint.names()), checkpoint.model.state_dict()
    return sum(state[name].numel() for name in names)


def _state(
    checkpoint: Checkpoint,
    cfg: QuantConfig,
    skip: Sequence[str],
    dtype: torch.dtype,
    calibration: str,
    ids: Tensor,
    device: torch.device,
) -> dict[str, object]:
    """All that the output depends on."""
    return {
        "source": checkpoint.fingerprint(),
        "config": cfg.to_dict(),
        "calibration": calibration,
        "calibration ids": ids_digest(ids),
        "skip": list(skip),
        "embed_dtype": str(dtype),
        "versions": versions(),
        **where(device),
    }


def where(device: torch.device) -> dict[str, object]:
    """What else decides about the bits: others sum in another order."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"threads": torch.get_num_threads(), "device": name}


def ids_digest(ids: Tensor) -> str:
    return f"{list(ids.shape)}, {hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()[:16]}"


def versions() -> dict[str, str]:
    """Of what decides about the bits of a result."""
    import transformers

    from . import __version__

    return {"arbllm_kernels": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _embed_dtype(name: str, checkpoint: Checkpoint) -> torch.dtype:
    if name in ("auto", ROUNDED):
        return torch.float16 if checkpoint.dtype == torch.float32 else checkpoint.dtype
    if name not in EMBED_DTYPES:
        raise InputError(f"embed_dtype = {name!r}: must be auto, {', '.join(EMBED_DTYPES)} or {ROUNDED}")
    return EMBED_DTYPES[name]


def _check_model(model: nn.Module, skip: Sequence[str]) -> None:
    done = [name for name, module in model.named_modules() if isinstance(module, ARBLinear)]
    if done:
        raise InputError(f"the model is quantized already: {len(done)} ARBLinear layers, such as {done[0]}")
    check_skip(model, find_layers(model)[0], skip)


def check_out(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file, such as {out / 'model.arb'}")
    if out.suffix != ".arb":
        raise InputError(f"{out}: must end in .arb, by which it is recognised later; try {out.with_suffix('.arb')}")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists already; choose another name or overwrite it (--overwrite)")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{out}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{out}: the folder {folder} is not writable")


def _packed_names(checkpoint: Checkpoint, skip: Sequence[str]) -> set[str]:
    """Names of the weights that will be binarized."""
    stack, layers = find_layers(checkpoint.model)
    return {
        f"{stack}.{index}.{name}.weight"
        for index, layer in enumerate(layers)
        for name in layer_linears(layer, f"{stack}.{index}", skip)
    }


def _check_space(checkpoint: Checkpoint, out: Path, dtype: torch.dtype, packed: set[str]) -> None:
    """The packed weights are on disk twice for a moment, in the work folder and in the file."""
    state = checkpoint.model.state_dict()
    sizes = {name: state[name].numel() for name in checkpoint.names()}
    binary = sum(size for name, size in sizes.items() if name in packed)
    need = int(2 * binary * LEAST_BITS / 8 + (sum(sizes.values()) - binary) * dtype.itemsize)
    free = shutil.disk_usage(out.absolute().parent).free
    if free < need:
        raise InputError(f"{out}: needs at least {need / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")


def _check_weights(checkpoint: Checkpoint, dtype: torch.dtype, packed: set[str], report: Report) -> None:
    """Read every tensor once, so that a bad one is found before hours of work and not after."""
    names = list(checkpoint.names())
    with report.bar("checking weights", len(names)):
        for name in names:
            tensor = checkpoint.tensor(name)
            check_finite(f"{checkpoint.path}: {name}", tensor)
            if name not in packed:
                cast(name, tensor, dtype)
            report.advance()


def _dense_sentence(layers: nn.ModuleList) -> str | None:
    """Says which matrices of the decoder layers stay dense because they are no nn.Linear."""
    share, names = dense_share(layers)
    if not names:
        return None
    return (
        f"{share:.1%} of the decoder layers' dense weights are no nn.Linear and stay as they are "
        f"(such as {names[0]}; transformers keeps many experts as one fused tensor)."
    )
