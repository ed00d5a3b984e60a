"""The bytes of an `.arb` file: one safetensors file with a checked header. Knows packed weights, but no models.

    u64 header length | JSON header (metadata, tensor table) | tensor data without gaps

`write` streams one tensor at a time, so what it needs beyond its input is one buffer; it lays the file out itself
because safetensors' own writer orders metadata at random (equal models would give different bytes) and does not keep
the planes on 8-byte boundaries. Reading maps the file through safetensors, after header.py has checked it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import FormatError, InputError
from .header import (
    DTYPE_NAMES,
    MAX_DIMS,
    MAX_HEADER,
    NAME,
    PLANES,
    TOKENIZER,
    TOKENIZER_FILE,
    Entry,
    Header,
    header_bytes,
    parse,
)
from .packed import PARTS, PackedWeight

_EXPONENT = {  # integer type of the same width, exponent bits
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
}
CHUNK = 1 << 22  # bytes or elements looked at together; bounds the memory of checks


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
        if not TOKENIZER_FILE.fullmatch(name):
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
            start = file.write(header_bytes(header, table, checksums))  # same length as the final one
            for name in table:
                checksums[name] = _write_tensor(file, name, source[name])
            file.seek(0)
            if file.write(header_bytes(header, table, checksums)) != start:
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
        if not NAME.fullmatch(name):
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


def _write_tensor(file: BinaryIO, name: str, tensor: Tensor) -> str:
    """Write the content, return its sha256."""
    flat = tensor.cpu().contiguous().reshape(-1)
    if not is_finite(flat):
        raise InputError(f"{name}: holds NaN or Inf, and an .arb file must not")
    digest = hashlib.sha256()
    content = flat.view(torch.uint8).numpy().data
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
    """Whether no element is NaN or Inf, looking at a bounded piece at a time.

    Such elements have all exponent bits set. Comparing integers is several times faster than torch.isfinite, which
    converts half-precision numbers one by one on a CPU, and it matters: saving and verifying read every embedding.
    """
    if tensor.dtype not in _EXPONENT:
        return True
    integer, mask = _EXPONENT[tensor.dtype]
    flat = tensor.reshape(-1).view(integer)
    return all(int((flat[i : i + CHUNK] & mask).max()) < mask for i in range(0, flat.numel(), CHUNK))


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
        header, table, checksums = parse(text, status.st_size)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error.__cause__
    return Archive(path=name, nbytes=status.st_size, header=header, table=table, checksums=checksums)
