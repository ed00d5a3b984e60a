"""Where the bytes of an `.arb` file go: per packed weight, and for the whole file in parts that sum to its size."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .archive import Archive, read
from .header import TOKENIZER

CATEGORIES = {
    "sign": "signs",
    "second": "signs",
    "group": "bitmaps",
    "salient": "bitmaps",
    "columns": "bitmaps",
    "row_scale": "scales",
    "row_base": "scales",
    "mean": "scales",
    "col_scale": "scales",
    "col_scale2": "scales",
}


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """One packed weight.

    Attributes:
        name: module name.
        shape: (out_features, in_features).
        salient_columns: in all blocks together.
        nbytes: bytes of all its stored parts, padding included.
        bits_per_weight: true storage, 8 * nbytes / weights.
        nominal_bits_per_weight: the paper's figure, which counts sign bits alone.
    """

    name: str
    shape: tuple[int, int]
    method: str
    block_size: int
    groups: int
    salient_groups: int
    salient_order: int
    salient_columns: int
    nbytes: int
    bits_per_weight: float
    nominal_bits_per_weight: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole file; all sizes in bytes. `parts` sums exactly to `nbytes`.

    Attributes:
        signs: first and second sign planes.
        bitmaps: group planes, column bitmaps and explicit column orders.
        scales: row scales and their bases, means and column scales.
        embeddings: embeddings and output head, as far as they are dense.
        dense: all other dense tensors (norms, biases).
        tokenizer: tokenizer files.
        header: the header with its length field.
    """

    path: str
    nbytes: int
    signs: int
    bitmaps: int
    scales: int
    embeddings: int
    dense: int
    tokenizer: int
    header: int
    weights: tuple[WeightReport, ...]

    @property
    def parts(self) -> dict[str, int]:
        """The split of the file, by name."""
        names = ("signs", "bitmaps", "scales", "embeddings", "dense", "tokenizer", "header")
        return {name: getattr(self, name) for name in names}

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight over all packed weights; 0 if there are none."""
        count = sum(w.shape[0] * w.shape[1] for w in self.weights)
        return 8 * sum(w.nbytes for w in self.weights) / count if count else 0.0

    @property
    def nominal_bits_per_weight(self) -> float:
        """The paper's figure over all packed weights."""
        count = sum(w.shape[0] * w.shape[1] for w in self.weights)
        signs = sum(w.nominal_bits_per_weight * w.shape[0] * w.shape[1] for w in self.weights)
        return signs / count if count else 0.0


def inspect(path: str | os.PathLike[str]) -> Report:
    """Report on a file's sizes; reads its header and column bitmaps only.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is not a sound `.arb` file.
    """
    return report(read(path))


def report(archive: Archive) -> Report:
    """The same for a file that is already open."""
    sizes = dict.fromkeys(("signs", "bitmaps", "scales", "embeddings", "dense", "tokenizer"), 0)
    for name, entry in archive.table.items():
        sizes[_category(archive, name)] += entry.nbytes
    weights = tuple(_weight_report(archive, module) for module in sorted(archive.header.layouts))
    header = archive.nbytes - sum(sizes.values())  # the table covers every other byte exactly once
    return Report(path=archive.path, nbytes=archive.nbytes, header=header, weights=weights, **sizes)


def _category(archive: Archive, name: str) -> str:
    if name.startswith(TOKENIZER):
        return "tokenizer"
    if name in archive.header.embeddings:
        return "embeddings"
    module, _, part = name.rpartition(".")
    return CATEGORIES.get(part, "dense") if module in archive.header.layouts else "dense"


def _weight_report(archive: Archive, module: str) -> WeightReport:
    packed = archive.packed(module)
    layout = packed.layout
    return WeightReport(
        name=module,
        shape=packed.shape,
        method=layout.method,
        block_size=layout.block_size,
        groups=layout.groups,
        salient_groups=layout.salient_groups,
        salient_order=layout.salient_order,
        salient_columns=packed.salient_columns,
        nbytes=packed.nbytes,
        bits_per_weight=packed.bits_per_weight,
        nominal_bits_per_weight=packed.nominal_bits_per_weight,
    )
