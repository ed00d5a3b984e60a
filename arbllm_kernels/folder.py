"""The folder form of a packed model, as transformers and the hub expect it, and its conversion from and to `.arb`.

    config.json                     the model's config, and `quantization_config` with what the .arb header says
    generation_config.json          if the model has one
    model.safetensors, or shards    the tensors of the .arb file, byte for byte under the same names, and the guards
    tokenizer files, README.md      the latter is a model card

A transformers that has not been told about "arb" would only warn and run the model with random weights. So a folder
holds two tensors without content: one in place of a weight that then has the wrong shape, at which transformers stops,
and one whose name, listed in its message, says what to do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .archive import CHUNK, read, write
from .checkpoints import open_safetensors, stored_tensors
from .config import QuantConfig
from .errors import ArbError, FormatError, InputError
from .header import DTYPE_NAMES, DTYPES, PLANES, PRODUCER, TOKENIZER, TOKENIZER_FILE, VERSIONS, Header, needed_version
from .model_card import model_card

METHOD = "arb"  # quant_method of config.json
GUARD = "import_arbllm_kernels_before_loading_this_model"
SHARD = 5_000_000_000  # bytes
CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
NO_TOKENIZER = (CONFIG, GENERATION, INDEX)  # all other files of these kinds belong to the tokenizer
TOKENIZER_KINDS = (".json", ".jinja", ".model", ".txt", ".tiktoken")


@dataclass(frozen=True, kw_only=True)
class FolderInfo:
    """The fields of `quantization_config` in config.json, which are those of the .arb header (docs/format.md).

    Attributes:
        layouts: module name -> layout as a JSON object.
        ties, embeddings, tables, quant_config, extra, producer: as in header.Header.
        format_version: the oldest that knows everything in use.
    """

    format_version: int
    layouts: dict[str, Any]
    ties: dict[str, str] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    quant_config: QuantConfig | None = None
    extra: Any = None
    producer: str = PRODUCER

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["embeddings"], values["tables"] = sorted(self.embeddings), sorted(self.tables)
        values["quant_config"] = None if self.quant_config is None else self.quant_config.to_dict()
        values["producer"] = {"name": self.producer}  # vLLM asks every quantization_config for its producer's name
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FolderInfo:
        """Raises FormatError naming what is wrong."""
        version = values.get("format_version")
        if type(version) is not int or str(version) not in VERSIONS:
            raise FormatError(
                f"quantization_config.format_version = {version!r:.40}, but this package reads versions "
                f"{' and '.join(VERSIONS)}; upgrade arbllm_kernels to read newer models"
            )
        rest = {name: value for name, value in values.items() if name not in ("format_version", "quant_method")}
        producer = rest.get("producer")
        if isinstance(producer, Mapping) and producer.keys() == {"name"}:
            rest["producer"] = producer["name"]
        elif "producer" in rest:
            raise FormatError(f'quantization_config.producer = {producer!r:.40}, must be {{"name": ...}}')
        header = Header.from_dict({**rest, "config": {}, "generation_config": None})
        return dataclasses.replace(cls.from_header(header, ()), format_version=version)

    @classmethod
    def from_header(cls, header: Header, names: Iterable[str]) -> FolderInfo:
        """`names` are those of the stored tensors."""
        return cls(
            format_version=int(needed_version(header, names)),
            layouts={name: layout.to_dict() for name, layout in header.layouts.items()},
            ties=header.ties,
            embeddings=header.embeddings,
            tables=header.tables,
            quant_config=header.quant_config,
            extra=header.extra,
            producer=header.producer,
        )

    def header(self, config: dict[str, Any], generation_config: dict[str, Any] | None) -> Header:
        values = {name: value for name, value in self.to_dict().items() if name != "format_version"}
        values |= {"producer": self.producer, "config": config, "generation_config": generation_config}
        return Header.from_dict(values)


def guards(header: Header) -> dict[str, Tensor]:
    """The tensors without content that a folder holds besides the model's."""
    return {f"{min(header.layouts)}.weight": torch.empty(0), GUARD: torch.empty(0)} if header.layouts else {}


def is_packed_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a model packed by this package."""
    file = Path(path, CONFIG)
    if not file.is_file():
        return False
    quantization = _json(file).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD


def shapes_of(files: Sequence[str | os.PathLike[str]]) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Tensor name -> (dtype, shape), from the headers of safetensors files. Raises FormatError."""
    shapes = {}
    for path in files:
        handle = open_safetensors(Path(path))
        for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no dict
            part = handle.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise FormatError(f"{path}: tensor {name}: dtype {part.get_dtype()} is not one of {', '.join(DTYPES)}")
            shapes[name] = (DTYPES[part.get_dtype()], part.get_shape())
    return shapes


def write_folder(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Header,
    tokenizer_files: Mapping[str, bytes],
    *,
    perplexity: Mapping[str, float] | None = None,
    base_model: str | None = None,
    shard: int = SHARD,
) -> None:
    """Write the folder form; it appears only when it is complete.

    Args:
        folder: must not exist, or be empty.
        tensors, header, tokenizer_files: as for archive.write.
        perplexity: text or data set -> value, for the model card.
        base_model: hub id of the dense model, for the model card.
        shard: most bytes per safetensors file; a larger tensor gets its own.

    Raises:
        InputError: the folder is in use, or its parent is missing.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already and is not empty; choose another name")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: there is no folder {target.absolute().parent}; create it first")
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        quantization = {"quant_method": METHOD, **FolderInfo.from_header(header, tensors).to_dict()}
        _write_json(temporary / CONFIG, {**header.config, "quantization_config": quantization})
        if header.generation_config is not None:
            _write_json(temporary / GENERATION, header.generation_config)
        for name, content in tokenizer_files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        everything = {name: tensor.detach() for name, tensor in tensors.items()} | guards(header)
        planes = {f"{module}.{part}" for module in header.layouts for part in PLANES}
        _write_shards(temporary, everything, planes, shard)
        card = model_card(target.name, tensors, header, perplexity or {}, base_model)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already unless something failed


def save_folder(
    model: Any,
    folder: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    perplexity: Mapping[str, float] | None = None,
    base_model: str | None = None,
    shard: int = SHARD,
) -> None:
    """Write a model that holds ARBLinears as a folder ready for the hub, with tokenizer and model card.

    See `write_folder` for arguments and errors; transformers' own `model.save_pretrained` writes no card.
    """
    from .container import describe, tokenizer_files

    tensors, header = describe(model)
    if not header.layouts:
        raise InputError(f"{type(model).__name__} holds no ARBLinear; quantize it first")
    files = {} if tokenizer is None else tokenizer_files(tokenizer)
    write_folder(folder, tensors, header, files, perplexity=perplexity, base_model=base_model, shard=shard)


def read_folder(folder: str | os.PathLike[str]) -> tuple[Mapping[str, Tensor], Header, dict[str, bytes]]:
    """(tensors, read when asked for; header; tokenizer files) of a packed folder.

    Raises:
        InputError: no packed folder, or unreadable.
        FormatError: its `quantization_config` is damaged or newer.
    """
    path = Path(folder)
    if not is_packed_folder(path):
        raise InputError(f"{path}: config.json has no quantization_config of this package; quantize the model first")
    config = _json(path / CONFIG)
    info = FolderInfo.from_dict(config.pop("quantization_config"))
    generation = _json(path / GENERATION) if (path / GENERATION).is_file() else None
    header = info.header(config, generation)
    tensors = _Stored({name: file for name, (file, _) in stored_tensors(path).items() if name not in guards(header)})
    return tensors, header, _tokenizer_files(path)


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str], **card: Any) -> None:
    """Turn an `.arb` file into a folder, or a folder into an `.arb` file; no number changes.

    Args:
        source: decides the direction; an `.arb` file is verified first.
        out: the folder, which must not exist or be empty, or the `.arb` file.
        card: perplexity, base_model and shard of `write_folder`.

    Raises:
        InputError: there is no such source, or `out` exists.
        FormatError: the source is damaged, or its tensors do not fit the model of its config.
    """
    origin, target = Path(source), Path(out)
    if origin.is_file():
        archive = read(origin)
        archive.check_content()
        if not archive.header.layouts:
            raise InputError(f"{origin}: holds no packed weight")
        tensors = archive.tensors([name for name in archive.table if not name.startswith(TOKENIZER)])
        write_folder(target, tensors, archive.header, archive.tokenizer_files(), **card)
        return
    if not origin.is_dir():
        raise InputError(f"{origin}: no such file or folder")
    if target.suffix != ".arb" or target.exists():
        raise InputError(f"{target}: must end in .arb and not exist yet")
    from .container import load

    write(target, *read_folder(origin))
    try:
        load(target)
    except ArbError:
        target.unlink()
        raise


class _Stored(Mapping[str, Tensor]):
    """Tensors of safetensors files, mapped when asked for."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        tensor: Tensor = self._open[path].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    paths = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    names = {path.relative_to(folder).as_posix(): path for path in paths if path.suffix in TOKENIZER_KINDS}
    return {
        name: path.read_bytes()
        for name, path in sorted(names.items())
        if path.is_file() and name not in NO_TOKENIZER and TOKENIZER_FILE.fullmatch(name)
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], planes: set[str], shard: int) -> None:
    """`model.safetensors`, or several and their index."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if groups[-1] and size + nbytes > shard:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    count = len(groups)
    places: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        with (folder / file).open("wb") as handle:
            _write_safetensors(handle, {name: tensors[name] for name in names}, planes)
            handle.flush()
            os.fsync(handle.fileno())
        places |= dict.fromkeys(names, file)
    if count > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], planes: set[str]) -> None:
    """One safetensors file, written piece by piece; wide types and planes first, so that all are aligned."""
    order = sorted(tensors, key=lambda name: (-8 if name in planes else -tensors[name].element_size(), name))
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + math.prod(tensor.shape) * tensor.element_size()
        rows[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        content = tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), CHUNK):
            file.write(content[start : start + CHUNK])
