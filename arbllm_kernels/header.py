"""The header of an `.arb` file: JSON metadata, tensor table and their checksum, to bytes and back.

docs/format.md is the normative text. `parse` reads headers that strangers wrote: it checks every field, size and
offset, and whatever it cannot accept is a FormatError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from .config import QuantConfig
from .errors import FormatError, InputError
from .packed import Layout

FORMAT = "arb"
VERSIONS = ("1", "2")
VERSION_2_PARTS = ("row_base", "columns")
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

NAME = re.compile(r"[!-~]{1,512}")
TOKENIZER_FILE = re.compile(r"(additional_chat_templates/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


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
        tables: names of the modules (embedding, output head) that are 8-bit tables: `<module>.codes`, `<module>.scale`.
        extra: any JSON value the producer wants to keep.
        producer: program that wrote the file.
    """

    config: dict[str, Any]
    layouts: dict[str, Layout]
    generation_config: dict[str, Any] | None = None
    quant_config: QuantConfig | None = None
    embeddings: tuple[str, ...] = ()
    ties: dict[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    extra: Any = None
    producer: str = PRODUCER

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_dict`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["layouts"] = {name: layout.to_dict() for name, layout in self.layouts.items()}
        values["quant_config"] = None if self.quant_config is None else self.quant_config.to_dict()
        values["embeddings"] = sorted(self.embeddings)
        values["tables"] = sorted(self.tables)
        if not self.tables:
            del values["tables"]  # version 1 does not know the field
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Header:
        """Raises FormatError naming the field that is wrong."""
        kinds = {"config": dict, "layouts": dict, "embeddings": list, "ties": dict, "tables": list, "producer": str}
        values = {"tables": [], **values}
        expected = {f.name for f in dataclasses.fields(cls)}
        if set(values) != expected:
            raise FormatError(f"metadata must hold exactly {sorted(expected)}, but holds {sorted(values)}"[:2000])
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise FormatError(f"metadata field {name} must be a JSON {kind.__name__}")
        if not all(isinstance(s, str) for s in (*values["embeddings"], *values["ties"].values(), *values["tables"])):
            raise FormatError("metadata fields embeddings, ties and tables must hold names")
        for name in (*values["layouts"], *values["ties"]):
            if not NAME.fullmatch(name):
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
        known = {"layouts": layouts, "quant_config": quant_config}
        names = {key: tuple(values[key]) for key in ("embeddings", "tables")}
        return cls(**{**values, **known, **names})


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


def header_bytes(header: Header, table: dict[str, Entry], checksums: dict[str, str]) -> bytes:
    rows = {
        name: {"data_offsets": [e.begin, e.end], "dtype": DTYPE_NAMES[e.dtype], "shape": list(e.shape)}
        for name, e in table.items()
    }
    inner = _canonical({**header.to_dict(), "checksums": checksums})
    version = needed_version(header, table)
    metadata = {"arb": inner, "format": FORMAT, "sha256": _table_digest(inner, rows), "version": version}
    text = _canonical({"__metadata__": metadata, **rows}).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise InputError(f"the header takes {len(text)} bytes; {MAX_HEADER} is the limit")
    return struct.pack("<Q", len(text)) + text


def needed_version(header: Header, table: Iterable[str]) -> str:
    """The oldest format version that knows everything in use; files are written in that one."""
    names = set(table)
    newer = any(f"{module}.{part}" in names for module in header.layouts for part in VERSION_2_PARTS)
    newer |= bool(header.tables) or any(layout.shared_columns for layout in header.layouts.values())
    return "2" if newer else "1"


def _table_digest(inner: str, rows: dict[str, Any]) -> str:
    return hashlib.sha256(f"{inner}\n{_canonical(rows)}".encode()).hexdigest()


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"a config or `extra` cannot be written as JSON: {error}") from error


def parse(text: bytes, size: int) -> tuple[Header, dict[str, Entry], dict[str, str]]:
    """Check the JSON header of a file of `size` bytes. Returns header, tensor table in file order, sha256 by tensor.

    Raises:
        FormatError: naming the field or tensor that is wrong.
    """
    if not text.startswith(b"{"):
        raise FormatError("header does not begin with '{'; not an .arb file")
    rows = _json(text, "header")
    metadata = rows.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FormatError("a safetensors file perhaps, but not an .arb file: its metadata has no format = arb")
    version = metadata.get("version")
    if version not in VERSIONS:
        known = f"this package reads versions {' and '.join(VERSIONS)}"
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
    if version != needed_version(header, table):
        raise FormatError(f"format version {version}, but its content is of version {needed_version(header, table)}")
    planes = [f"{module}.{part}" for module in header.layouts for part in PLANES]
    for name in planes:
        if name in table and table[name].begin % 8:
            raise FormatError(f"tensor {name} begins at byte {table[name].begin}, which is not a multiple of 8")
    both = set(header.tables) & {*header.layouts, *header.ties}
    if both:
        raise FormatError(f"metadata names {min(both)!r:.600} as an 8-bit table and as something else")
    for name in (*header.embeddings, *header.ties.values()):
        if name not in table and name not in header.layouts:
            raise FormatError(f"metadata names tensor {name!r:.600}, which the file does not hold")
    return header, table, checksums


def _read_table(rows: dict[str, Any], start: int, size: int) -> dict[str, Entry]:
    """Check every row, and that the tensors cover bytes start..size of the file exactly once."""
    table = {}
    for name, row in rows.items():
        if not NAME.fullmatch(name):
            raise FormatError(f"tensor name {name!r:.100} is not allowed")
        if name.startswith(TOKENIZER) and not TOKENIZER_FILE.fullmatch(name[len(TOKENIZER) :]):
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
