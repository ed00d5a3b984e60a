"""The bytes of an `.arb` file: one safetensors file with a checked header. Knows packed weights, but no models.

    u64 header length | JSON header (metadata, tensor table) | tensor data without gaps

docs/format.md is the normative text. `write` streams one tensor at a time, so what it needs beyond its input is one
buffer; it lays the file out itself because safetensors' own writer orders metadata at random (equal models would give
different bytes) and does not keep the planes on 8-byte boundaries. Reading maps the file through safetensors. Files
come from strangers: `read` trusts nothing, and everything it cannot accept is a FormatError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import QuantConfig
from .errors import FormatError, InputError
from .packed import PARTS, Layout, PackedWeight

FORMAT, VERSION = "arb", 1
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
MAX_DEPTH = 32  # nesting of the JSON inside
MAX_DIMS = 8
PRODUCER = "arbllm_kernels"
TOKENIZER = "tokenizer/"
PLANES = ("sign", "group", "second", "salient")
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 22  # bytes or elements looked at together; bounds the memory of checks

_NAME = re.compile(r"[!-~]{1,512}")
_TOKENIZER_FILE = re.compile(r"(additional_chat_templates/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an `.arb` file says about its tensors.

    Attributes:
        config: the model's transformers config as plain JSON values.
        layouts: module name -> layout of its packed weight.
        generation_config: likewise, or None.
        quant_config: how the weights were made, or None.
        embeddings: names of the stored tensors that are embeddings or output head (for the size report).
        ties: name -> the stored name whose tensor (or packed module) it shares.
        extra: any JSON value the producer wants to keep.
        producer: program that wrote the file.
    """

    config: dict[str, Any]
    layouts: dict[str, Layout]
    generation_config: dict[str, Any] | None = None
    quant_config: QuantConfig | None = None
    embeddings: tuple[str, ...] = ()
    ties: dict[str, str] = field(default_factory=dict)
    extra: Any = None
    producer: str = PRODUCER

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_dict`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["layouts"] = {name: layout.to_dict() for name, layout in self.layouts.items()}
        values["quant_config"] = None if self.quant_config is None else self.quant_config.to_dict()
        values["embeddings"] = sorted(self.embeddings)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Header:
        """Raises FormatError naming the field that is wrong."""
        kinds = {"config": dict, "layouts": dict, "embeddings": list, "ties": dict, "producer": str}
        expected = {f.name for f in dataclasses.fields(cls)}
        if set(values) != expected:
            raise FormatError(f"metadata must hold exactly {sorted(expected)}, but holds {sorted(values)}"[:2000])
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise FormatError(f"metadata field {name} must be a JSON {kind.__name__}")
        if not all(isinstance(s, str) for s in (*values["embeddings"], *values["ties"].values())):
            raise FormatError("metadata fields embeddings and ties must hold tensor names")
        for name in (*values["layouts"], *values["ties"]):
            if not _NAME.fullmatch(name):
                raise FormatError(f"metadata fields layouts and ties: {name!r:.100} is not a name")
        for name in ("generation_config", "quant_config"):
            if not isinstance(values[name], (dict, type(None))):
                raise FormatError(f"metadata field {name} must be a JSON object or null")
        quant_config = None
        if values["quant_config"] is not None:
            try:
                quant_config = QuantConfig.from_dict(values["quant_config"])
            except (InputError, TypeError) as error:
                raise FormatError(f"metadata field quant_config: {error}") from error
        layouts = {name: Layout.from_dict(layout, name) for name, layout in values["layouts"].items()}
        known = {"layouts": layouts, "quant_config": quant_config, "embeddings": tuple(values["embeddings"])}
        return cls(**{**values, **known})


@dataclass(frozen=True)
class Entry:
    """One row of the tensor table; `begin` and `end` are byte positions in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An `.arb` file whose header and tensor table have been checked; the tensors' content has not."""

    path: str
    nbytes: int
    header: Header
    table: dict[str, Entry]
    checksums: dict[str, str]

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.path}: {message}")

    def where(self, name: str) -> str:
        """The tensor and its bytes, for messages."""
        entry = self.table[name]
        return f"tensor {name}, bytes {entry.begin}..{entry.end}"

    def tensors(self, names: list[str] | None = None) -> dict[str, Tensor]:
        """Map tensors into memory: no byte is read before it is used, and writing to one changes a private copy."""
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in (self.table if names is None else names)}
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise FormatError(f"{self.path}: cannot be mapped: {error}") from error

    def packed(self, module: str, mapped: Mapping[str, Tensor] | None = None, *, finite: bool = False) -> PackedWeight:
        """The packed weight of one module, validated; `finite` also checks its content.

        Raises:
            FormatError: naming file, tensor and byte range.
        """
        if module not in self.header.layouts:
            known = ", ".join(list(self.header.layouts)[:3])
            raise InputError(f"{self.path}: holds no packed weight {module!r}; it has {known or 'none'} ...")
        names = {part: f"{module}.{part}" for part in PARTS if f"{module}.{part}" in self.table}
        for part in (*PLANES, "row_scale"):
            if part not in names:
                self.fail(f"tensor {module}.{part} is missing; the file is damaged, get it again")
        source = self.tensors(list(names.values())) if mapped is None else mapped
        parts = {part: source[name] for part, name in names.items()}
        try:
            return PackedWeight(layout=self.header.layouts[module], **parts).validate(module, finite=finite)
        except FormatError as error:
            for name in names.values():
                if str(error).startswith(f"{name}:"):
                    self.fail(f"{error} ({self.where(name)})")
            self.fail(str(error))

    def tokenizer_files(self, mapped: Mapping[str, Tensor] | None = None) -> dict[str, bytes]:
        """File name -> content; empty if the file holds no tokenizer."""
        names = [name for name in self.table if name.startswith(TOKENIZER)]
        source = self.tensors(names) if mapped is None else mapped
        return {name[len(TOKENIZER) :]: source[name].numpy().tobytes() for name in names}

    def check_content(self) -> None:
        """Read everything: each tensor's checksum, packed weights' content, finite dense tensors.

        Raises:
            FormatError: naming file, tensor and byte range.
        """
        with open(self.path, "rb") as file:
            for name, entry in self.table.items():
                if _digest(file, entry) != self.checksums[name]:
                    self.fail(f"{self.where(name)}: checksum does not match; the file is damaged, get it again")
        for name, tensor in self.tensors().items():
            if not is_finite(tensor):
                self.fail(f"{self.where(name)}: holds NaN or Inf")
        for module in self.header.layouts:
            self.packed(module, finite=True)


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Header,
    tokenizer_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write an `.arb` file; `path` appears only when it is complete, and an older file there is kept until then.

    Args:
        tensors: final name -> tensor: `<module>.<part>` for each module of header.layouts, `<module>.bias`, and dense
            tensors under their state_dict names. A mapping that makes or maps a tensor when asked keeps memory low:
            each is asked for twice, first for dtype and shape and then for its content.
        tokenizer_files: file name -> content.

    Raises:
        InputError: a name, dtype or value the format cannot hold.
        FormatError: a packed weight breaks its layout.
        OSError: the disk is full or the place not writable.
    """
    files = dict(tokenizer_files or {})
    for name in files:
        if not _TOKENIZER_FILE.fullmatch(name):
            raise InputError(f"tokenizer file name {name!r} is not allowed in an .arb file")
    source = _Source(tensors, {TOKENIZER + name: content for name, content in files.items()})
    table = _plan(source, header)
    for module, layout in header.layouts.items():
        parts = {p: source[f"{module}.{p}"] for p in PARTS if f"{module}.{p}" in table}
        missing = sorted({*PLANES, "row_scale"} - set(parts))
        if missing:
            raise InputError(f"packed weight {module}: parts {missing} are not among the tensors to write")
        PackedWeight(layout=layout, **parts).validate(module)
    target = os.fspath(path)
    temporary = f"{target}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            checksums = dict.fromkeys(table, "0" * 64)
            start = file.write(_header_bytes(header, table, checksums))  # same length as the final one
            for name in table:
                checksums[name] = _write_tensor(file, name, source[name])
            file.seek(0)
            if file.write(_header_bytes(header, table, checksums)) != start:
                raise InputError(f"{target}: the tensors to write changed while they were written")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_directory(os.path.dirname(target) or ".")
    finally:
        Path(temporary).unlink(missing_ok=True)  # gone already unless something failed


class _Source(Mapping[str, Tensor]):
    """Tensors and tokenizer files as one mapping."""

    def __init__(self, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]) -> None:
        self.all_tensors, self.files = tensors, files

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.files:
            return self.all_tensors[name].detach()
        content = self.files[name]
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def __iter__(self) -> Iterator[str]:
        yield from self.all_tensors
        yield from self.files

    def __len__(self) -> int:
        return len(self.all_tensors) + len(self.files)


def _plan(source: Mapping[str, Tensor], header: Header) -> dict[str, Entry]:
    """The tensor table, offsets counted from the start of the data: wide types and planes first, so all are aligned."""
    planes = {f"{module}.{part}" for module in header.layouts for part in PLANES}
    found: list[tuple[int, str, torch.dtype, tuple[int, ...], int]] = []
    for name in source:
        tensor = source[name]
        if not _NAME.fullmatch(name):
            raise InputError(f"tensor name {name!r}: must be 1..512 printable ASCII characters without spaces")
        if tensor.dtype not in DTYPE_NAMES or tensor.is_meta or tensor.dim() > MAX_DIMS:
            raise InputError(
                f"{name}: a {tensor.device} tensor of {tensor.dtype} {list(tensor.shape)} cannot be stored"
            )
        width = 8 if name in planes else tensor.element_size()
        found.append((-width, name, tensor.dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size()))
    table, position = {}, 0
    for _, name, dtype, shape, nbytes in sorted(found, key=lambda row: row[:2]):
        table[name] = Entry(dtype, shape, position, position + nbytes)
        position += nbytes
    absent = sorted({*header.embeddings, *header.ties.values()} - set(table) - set(header.layouts))
    if absent:
        raise InputError(f"the header names tensors that are not among those to write: {absent}")
    return table


def _header_bytes(header: Header, table: dict[str, Entry], checksums: dict[str, str]) -> bytes:
    rows = {
        name: {"data_offsets": [e.begin, e.end], "dtype": DTYPE_NAMES[e.dtype], "shape": list(e.shape)}
        for name, e in table.items()
    }
    inner = _canonical({**header.to_dict(), "checksums": checksums})
    metadata = {"arb": inner, "format": FORMAT, "sha256": _table_digest(inner, rows), "version": str(VERSION)}
    text = _canonical({"__metadata__": metadata, **rows}).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise InputError(f"the header takes {len(text)} bytes; {MAX_HEADER} is the limit")
    return struct.pack("<Q", len(text)) + text


def _table_digest(inner: str, rows: dict[str, Any]) -> str:
    return hashlib.sha256(f"{inner}\n{_canonical(rows)}".encode()).hexdigest()


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"a config or `extra` cannot be written as JSON: {error}") from error


def _write_tensor(file: BinaryIO, name: str, tensor: Tensor) -> str:
    """Write the content, return its sha256."""
    flat = tensor.cpu().contiguous().reshape(-1)
    if not is_finite(flat):
        raise InputError(f"{name}: holds NaN or Inf, and an .arb file must not")
    digest = hashlib.sha256()
    content = memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
    for start in range(0, len(content), CHUNK):
        digest.update(content[start : start + CHUNK])
        file.write(content[start : start + CHUNK])
    return digest.hexdigest()


def _sync_directory(folder: str) -> None:
    """Make the rename itself survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or Inf, looking at a bounded piece at a time."""
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[i : i + CHUNK]).all()) for i in range(0, flat.numel(), CHUNK))


def _digest(file: BinaryIO, entry: Entry) -> str:
    digest = hashlib.sha256()
    file.seek(entry.begin)
    left = entry.nbytes
    while left > 0 and (content := file.read(min(left, CHUNK))):
        digest.update(content)
        left -= len(content)
    return digest.hexdigest()


def read(path: str | os.PathLike[str]) -> Archive:
    """Open an `.arb` file: check its header, tensor table and header checksum without touching the tensors.

    Raises:
        InputError: there is no such file, or it may not be read.
        FormatError: it is not a sound `.arb` file; the message says what is wrong and where.
    """
    name = os.fspath(path)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{name}: not a regular file")
        with open(name, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= min(MAX_HEADER, status.st_size - 8):
                sizes = f"header of {length}, file of {status.st_size} bytes"
                raise FormatError(f"{name}: not an .arb file, or cut short ({sizes})")
            text = file.read(length)
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise InputError(f"{name}: cannot be read: {error}") from error
    try:
        return _parse(name, text, status.st_size)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error.__cause__


def _parse(path: str, text: bytes, size: int) -> Archive:
    if not text.startswith(b"{"):
        raise FormatError("header does not begin with '{'; not an .arb file")
    rows = _json(text, "header")
    metadata = rows.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FormatError("a safetensors file perhaps, but not an .arb file: its metadata has no format = arb")
    version = metadata.get("version")
    if version != str(VERSION):
        known = f"this package reads version {VERSION}"
        raise FormatError(f"format version {version!r:.20}, but {known}; upgrade arbllm_kernels to read newer files")
    if set(metadata) != {"arb", "format", "sha256", "version"} or not isinstance(metadata["arb"], str):
        raise FormatError("metadata must hold exactly the strings arb, format, sha256, version")
    table = _read_table(rows, 8 + len(text), size)
    if _table_digest(metadata["arb"], rows) != metadata["sha256"]:
        raise FormatError(
            f"header, bytes 0..{8 + len(text)}: checksum does not match; the file is damaged, get it again"
        )
    values = _json(metadata["arb"].encode(), "metadata field arb")
    checksums = values.pop("checksums", None)
    if not isinstance(checksums, dict) or set(checksums) != set(table):
        raise FormatError("metadata must hold one checksum per tensor")
    header = Header.from_dict(values)
    planes = [f"{module}.{part}" for module in header.layouts for part in PLANES]
    for name in planes:
        if name in table and table[name].begin % 8:
            raise FormatError(f"tensor {name} begins at byte {table[name].begin}, which is not a multiple of 8")
    for name in (*header.embeddings, *header.ties.values()):
        if name not in table and name not in header.layouts:
            raise FormatError(f"metadata names tensor {name!r:.600}, which the file does not hold")
    return Archive(path=path, nbytes=size, header=header, table=table, checksums=checksums)


def _read_table(rows: dict[str, Any], start: int, size: int) -> dict[str, Entry]:
    """Check every row, and that the tensors cover bytes start..size of the file exactly once."""
    table = {}
    for name, row in rows.items():
        if not _NAME.fullmatch(name):
            raise FormatError(f"tensor name {name!r:.100} is not allowed")
        if name.startswith(TOKENIZER) and not _TOKENIZER_FILE.fullmatch(name[len(TOKENIZER) :]):
            raise FormatError(f"tokenizer file name {name!r} is not allowed")
        table[name] = _read_row(name, row, start)
    position = start
    ordered = dict(sorted(table.items(), key=lambda item: (item[1].begin, item[1].end)))
    for name, entry in ordered.items():
        if entry.begin != position:
            what = "overlaps the one before it" if entry.begin < position else "leaves a gap before it"
            raise FormatError(f"tensor {name}, bytes {entry.begin}..{entry.end}: {what} (expected {position})")
        position = entry.end
    if position != size:
        what = "cut short" if position > size else "followed by bytes that belong to no tensor"
        raise FormatError(f"file is {what}: tensors end at byte {position}, the file at {size}; get it again")
    return ordered


def _read_row(name: str, row: object, start: int) -> Entry:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"tensor {name}: its table row must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"tensor {name}: dtype {dtype!r:.40} is not one of {', '.join(DTYPES)}")
    for numbers, most in ((shape, MAX_DIMS), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > most or not all(_is_size(n) for n in numbers):
            raise FormatError(f"tensor {name}: shape and data_offsets must be short lists of sizes below 2**48")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise FormatError(f"tensor {name}: {dtype} {shape} does not fill its bytes {offsets}")
    if name.startswith(TOKENIZER) and (dtype != "U8" or len(shape) != 1):
        raise FormatError(f"tensor {name}: a tokenizer file must be a one-dimensional U8 tensor")
    return Entry(DTYPES[dtype], tuple(shape), start + offsets[0], start + offsets[1])


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _json(text: bytes, what: str) -> dict[str, Any]:
    """Strict JSON object: UTF-8, no duplicate keys, no NaN or infinite number, bounded depth."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) != len(items):
            raise FormatError(f"{what}: a key appears twice in one object")
        return values

    def constant(name: str) -> NoReturn:
        raise FormatError(f"{what}: {name} is not a JSON number")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            constant(digits[:40])
        return value

    try:
        value = json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates, which no message or file could hold
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: not readable as JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict) or _depth(value) > MAX_DEPTH:
        raise FormatError(f"{what}: must be a JSON object nested at most {MAX_DEPTH} deep")
    return value


def _depth(value: object) -> int:
    """Nesting of a JSON value, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list)))
        level = [child for values in inner for child in values]
    return depth
