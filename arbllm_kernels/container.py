"""Models in `.arb` files: save, load, verify. header.py and archive.py hold the bytes, skeleton.py builds the
empty model, inspect.py reports sizes.

`load` builds the model twice: once wholly without memory, to compare every shape with what the file holds (a config
may ask for anything), and once with real non-persistent buffers (rotary tables and the like) and parameters without
memory, into which the mapped tensors are put.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .archive import Archive, read, write
from .config import QuantConfig
from .errors import FormatError, InputError
from .header import TOKENIZER, Header
from .inspect import Report, inspect, report
from .linear import X_DTYPES, ARBLinear
from .packed import PARTS, PackedWeight
from .skeleton import BUILD_ERRORS, Builder, brief, read_config
from .table import EXACT, RoundedTable, make_table

__all__ = ["Header", "Report", "inspect", "load", "read_header", "read_packed", "save", "verify", "write"]

RUN_KEYS = ("attn_implementation", "experts_implementation")
SPARE_BUFFERS = 64 << 20  # bytes of non-stored buffers a model may have beyond the file's own size


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    quant_config: QuantConfig | None = None,
    extra: Any = None,
) -> None:
    """Write a model whose Linears were replaced by ARBLinear as one `.arb` file. Equal models give equal bytes.

    Args:
        model: a transformers model (anything with a transformers `config`); tensors it shares are stored once.
        path: the file; an older one is replaced only when the new one is complete.
        tokenizer: a transformers tokenizer to store with it.
        quant_config: how the weights were made, kept for the reader.
        extra: any JSON value, kept for the reader.

    Raises:
        InputError: the model has no config, or holds what the format cannot; path is a folder or in none.
        OSError: the file cannot be written.
    """
    _check_target(Path(path))
    tensors, header = describe(model, quant_config, extra)
    write(path, tensors, header, {} if tokenizer is None else tokenizer_files(tokenizer))


def describe(
    model: nn.Module, quant_config: QuantConfig | None = None, extra: Any = None
) -> tuple[dict[str, Tensor], Header]:
    """What is stored of a model: its tensors by final name (shared ones once), and the header without a tokenizer.

    Raises:
        InputError: the model has no transformers config.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        raise InputError(f"{type(model).__name__} has no transformers config, so load() could not rebuild it")
    known: Any = getattr(getattr(config, "quantization_config", None), "info", None)  # hf.py attached it
    if known is not None:
        quant_config, extra = quant_config or known.quant_config, known.extra if extra is None else extra
    packed: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    layouts, ties, tables = {}, {}, []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ARBLinear):
            if packed.setdefault(id(module), name) != name:
                ties[name] = packed[id(module)]
                continue
            layouts[name] = module.packed.layout
            tensors |= {f"{name}.{part}": t for part, t in module.packed.tensors().items()}
        elif isinstance(module, RoundedTable):
            tables.append(name)
    dense = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        if owner not in ties and not (owner in layouts and leaf in PARTS):
            dense[name] = tensor
    ties |= _shared(dense, _tied_names(model))
    tensors |= {name: t for name, t in dense.items() if name not in ties}
    generation = getattr(model, "generation_config", None)
    values = _portable_config(json.loads(config.to_json_string(use_diff=False)))
    values.pop("quantization_config", None)  # the folder form's (hf.py); the header says all of it
    values["architectures"] = values.get("architectures") or [type(model).__name__]  # GGUF files name none
    return tensors, Header(
        config=values,
        layouts=layouts,
        generation_config=None if generation is None else _portable_config(generation.to_dict()),
        quant_config=quant_config,
        embeddings=tuple(sorted(_embedding_names(model, dense) & set(tensors))),
        ties=ties,
        tables=tuple(tables),
        extra=extra,
    )


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file, such as {path / 'model.arb'}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it first")


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files a transformers tokenizer saves itself as, without traces of where it came from.

    Raises InputError for anything else, such as a name.
    """
    if not hasattr(tokenizer, "save_pretrained"):
        raise InputError(
            f"tokenizer is {type(tokenizer).__name__} {tokenizer!r:.80}, must be a transformers tokenizer, as "
            "AutoTokenizer.from_pretrained returns it"
        )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    name = "tokenizer_config.json"
    if name in files:
        values = json.loads(files[name])
        for key in ("name_or_path", "is_local", "local_files_only"):
            values.pop(key, None)
        files[name] = (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return files


def _portable_config(values: Any) -> Any:
    """A config without what belongs to this machine or this run: keys with an underscore, choices of kernels."""
    if isinstance(values, dict):
        kept = {k: v for k, v in values.items() if not k.startswith("_") and k not in RUN_KEYS}
        return {k: _portable_config(v) for k, v in kept.items()}
    return [_portable_config(v) for v in values] if isinstance(values, list) else values


def _tied_names(model: nn.Module) -> set[str]:
    """Names that transformers itself re-creates from another tensor."""
    return set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())


def _shared(dense: dict[str, Tensor], tied: set[str]) -> dict[str, str]:
    """name -> the name under which the same memory is stored; names outside `tied` are preferred for storage."""
    kept: dict[Any, str] = {}
    aliases = {}
    for name in sorted(dense, key=lambda n: (n in tied, n)):
        t = dense[name]
        if t.numel() and not t.is_meta:
            first = kept.setdefault((t.device, t.data_ptr(), t.dtype, t.shape, t.stride()), name)
            if first != name:
                aliases[name] = first
    return aliases


def _embedding_names(model: nn.Module, dense: dict[str, Tensor]) -> set[str]:
    """State-dict names of the tensors of the input embedding and the output head."""
    owned: set[int] = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        with contextlib.suppress(NotImplementedError):  # transformers' way to say that a model has none
            module = getattr(model, getter, lambda: None)()
            if isinstance(module, nn.Module):
                owned |= {id(t) for t in (*module.parameters(), *module.buffers())}
    return {name for name, t in dense.items() if id(t) in owned}


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Rebuild a model and its tokenizer from an `.arb` file, in eval mode.

    On the CPU the tensors are views of the mapped file: nothing is read until it is used. Content is not verified
    (see `verify`); sizes, dtypes and the header checksum are. As with every mapping, the file must not be cut or
    overwritten in place while the model lives; replacing it, as `save` does, is safe.

    Args:
        device: where the model goes.
        dtype: float32, bfloat16 or float16 for dense tensors; None keeps what the file holds. Scales keep theirs.
        trust_remote_code: let the config in the file name code on the hub, as in transformers.

    Returns:
        (model, tokenizer); tokenizer is None if the file holds none.

    Raises:
        InputError: there is no such file or device, or dtype is another.
        FormatError: the file is damaged, hostile, newer, or its model unknown to the installed transformers.
    """
    if dtype is not None and dtype not in X_DTYPES:
        raise InputError(f"dtype = {dtype!r}: must be torch.float32, torch.bfloat16 or torch.float16, or None")
    _check_available(device)
    from .hf import attach

    archive = read(path)
    config = read_config(archive, trust_remote_code)
    if dtype is not None:
        config.dtype = dtype
    limit = Builder(archive)
    skeleton = limit.build(config, trust_remote_code, on_meta=True)
    places = _check_fit(archive, skeleton)
    model = limit.build(config, trust_remote_code, on_meta=False)
    mapped = archive.tensors()
    _fill(archive, model, mapped, places, dtype)
    _set_generation_config(archive, model)
    attach(model, archive.header.quant_config, archive.header.extra)
    tokenizer = _read_tokenizer(archive, mapped, trust_remote_code)
    return model.to(device).eval(), tokenizer


def _check_available(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise InputError(f"device = {str(device)!r} is not usable here: {brief(error)}; use device='cpu'") from error


def verify(path: str | os.PathLike[str]) -> Report:
    """Read a whole file and check everything: header, each tensor's checksum, every value. Returns its size report.

    Raises:
        InputError: the file cannot be read.
        FormatError: naming file, tensor and byte range.
    """
    archive = read(path)
    archive.check_content()
    return report(archive)


def read_header(path: str | os.PathLike[str]) -> Header:
    """What a file says about itself; its checksum has been checked. Raises InputError, FormatError."""
    return read(path).header


def read_packed(path: str | os.PathLike[str], name: str) -> PackedWeight:
    """One packed weight, mapped, by module name. Raises InputError (no such weight), FormatError."""
    return read(path).packed(name)


def _check_fit(archive: Archive, skeleton: nn.Module) -> dict[str, str]:
    """Compare the model the config describes with the tensors of the file.

    Returns:
        For every place of the model that takes a dense tensor: the name of the stored tensor.
    """
    layouts, ties, table = archive.header.layouts, archive.header.ties, archive.table
    modules = dict(skeleton.named_modules(remove_duplicate=False))
    packed = {*layouts, *(name for name, source in ties.items() if source in layouts)}
    for name in packed:
        layout = layouts[ties.get(name, name)]
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear) or linear.weight.shape != (layout.rows, layout.cols):
            shape = list(linear.weight.shape) if isinstance(linear, nn.Linear) else "something else or nothing"
            archive.fail(f"packed weight {name} is {layout.rows} x {layout.cols}, the model has {shape} there")
    places: dict[str, str] = {}
    replaced = {f"{name}.weight" for name in (*packed, *archive.header.tables)}
    expected = {name: t for name, t in skeleton.state_dict(keep_vars=True).items() if name not in replaced}
    for name in archive.header.tables:
        expected |= _table_parts(archive, name, modules.get(name))
    stored = {id(t): name for name, t in expected.items() if name in table}  # transformers' own ties share the object
    for name, t in expected.items():
        owner, _, leaf = name.rpartition(".")
        moved = f"{ties[owner]}.{leaf}" if owner in ties else name
        source = moved if moved in table else ties.get(name) or stored.get(id(t), "")
        if source not in table:
            archive.fail(f"tensor {name} is missing; the model needs it; get the file again or quantize anew")
        entry = table[source]
        kinds = [(d.is_floating_point, d is torch.int8) for d in (entry.dtype, t.dtype)]
        if entry.shape != tuple(t.shape) or kinds[0] != kinds[1]:
            have = f"{entry.dtype} {list(entry.shape)}"
            archive.fail(f"{archive.where(source)}: is {have}, the model needs {t.dtype} {list(t.shape)} for {name}")
        places[name] = source
    for name in ties:
        if name not in expected and name not in packed:
            archive.fail(f"tensor {name}, shared with {ties[name]}: the model has no place for it")
    used = {*places.values(), *(f"{module}.{part}" for module in layouts for part in PARTS)}
    for name in table:
        if name not in used and not name.startswith(TOKENIZER):
            archive.fail(f"{archive.where(name)}: the model has no place for it")
    extra = sum(b.numel() * b.element_size() for b in skeleton.buffers())
    if extra > archive.nbytes + SPARE_BUFFERS:
        archive.fail(f"its config asks for {extra} bytes of buffers, far more than the file holds")
    return places


def _table_parts(archive: Archive, name: str, module: nn.Module | None) -> dict[str, Tensor]:
    """What the 8-bit table of a module must look like, by name."""
    if type(module) not in EXACT:
        archive.fail(f"8-bit table {name}: the model has {type(module).__name__} there, no nn.Embedding or nn.Linear")
    shape: Any = getattr(module, "weight").shape  # noqa: B009 - mypy does not know that it is one of EXACT
    with torch.device("meta"):
        return {f"{name}.codes": torch.empty(shape, dtype=torch.int8), f"{name}.scale": torch.empty(shape[0])}


def _fill(
    archive: Archive, model: nn.Module, mapped: dict[str, Tensor], places: dict[str, str], dtype: torch.dtype | None
) -> None:
    """Put the file's tensors into the model; shapes fit already."""
    dense: dict[str, nn.Parameter] = {}
    for source in places.values():
        if source not in dense:
            tensor = mapped[source]
            floating = tensor.is_floating_point()
            dense[source] = nn.Parameter(tensor.to(dtype) if floating and dtype else tensor, requires_grad=floating)
    layers: dict[str, nn.Module] = {}
    for name in archive.header.layouts:
        bias = dense.get(places.get(f"{name}.bias", ""))
        layers[name] = ARBLinear(archive.packed(name, mapped), bias)
    for name, source in archive.header.ties.items():
        if source in layers:
            layers[name] = layers[source]
    for name in archive.header.tables:
        codes, scale = (dense[places[f"{name}.{part}"]].detach() for part in ("codes", "scale"))
        layers[name] = make_table(model.get_submodule(name), codes, scale, dense.get(places.get(f"{name}.bias", "")))
    for name, source in places.items():
        owner, _, leaf = name.rpartition(".")
        if owner not in layers:
            module = model.get_submodule(owner)
            tensor = dense[source]
            setattr(module, leaf, tensor if leaf in module._parameters else tensor.detach())
    for name, layer in layers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_meta:
            archive.fail(f"the model needs {name}, which is neither stored nor computed")


def _set_generation_config(archive: Archive, model: Any) -> None:
    from transformers import GenerationConfig

    if archive.header.generation_config is not None:
        try:
            model.generation_config = GenerationConfig.from_dict(archive.header.generation_config)
        except BUILD_ERRORS as error:
            raise FormatError(f"{archive.path}: its generation config is not usable: {brief(error)}") from error


def _read_tokenizer(archive: Archive, mapped: dict[str, Tensor], trust_remote_code: bool) -> Any:
    """Restore the tokenizer's files in a temporary folder and let transformers read them."""
    from transformers import AutoTokenizer

    files = archive.tokenizer_files(mapped)
    if not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            target = Path(folder, name)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
            )
        except BaseException as error:  # the tokenizers library raises plain Exception for a bad file, or panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise FormatError(f"{archive.path}: its tokenizer is not usable: {brief(error)}") from error
    tokenizer.name_or_path = archive.path
    return tokenizer
