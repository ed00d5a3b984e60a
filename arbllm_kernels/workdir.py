"""The folder `<out>.partial` beside a file being made, from which a killed run resumes.

    state.json                  what the run depends on; a resumed run must agree with all of it
    calibration.safetensors     the token ids, so that text the model wrote itself is not written twice
    layer_00000.safetensors     of each finished layer: packed tensors "<linear>.<part>", layouts and records as JSON in
                                the metadata

While scales are tuned it is `<out>.tuning`, with a `step.safetensors` instead of the layers.

Every file appears whole or not at all (written beside, synced, renamed).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ArbError, InputError
from .packed import Layout, PackedWeight
from .progress import LinearRecord

STATE = "state.json"
CALIBRATION = "calibration.safetensors"


class WorkFolder:
    """The partial results of one run."""

    def __init__(self, out: Path, suffix: str = ".partial") -> None:
        self.path = out.with_name(out.name + suffix)

    def check(self, resume: bool) -> None:
        """Raises InputError when there is a leftover folder and `resume` is off, or none to resume from."""
        if self.path.exists() and not resume:
            raise InputError(f"{self.path}: left by an unfinished run; continue it with --resume or delete the folder")
        if resume and not (self.path / STATE).is_file():
            raise InputError(f"{self.path}: no unfinished run to resume here; start without --resume")

    def start(self, state: dict[str, Any], ids: Tensor) -> None:
        """Make the folder. The state goes in last: a folder without it is no run."""
        from safetensors.torch import save_file

        self.path.mkdir()
        _atomic(self.path / CALIBRATION, lambda file: save_file({"ids": ids.contiguous()}, file))
        _atomic(self.path / STATE, lambda file: file.write_text(json.dumps(state, indent=1, sort_keys=True)))

    def calibration(self) -> Tensor:
        """The token ids of the run that is resumed, int64 [samples, T]."""
        from safetensors.torch import load_file

        return load_file(self.path / CALIBRATION)["ids"]

    def compare(self, state: dict[str, Any]) -> None:
        """Raises InputError naming everything in which this run differs from the one that left the folder."""
        try:
            before = json.loads((self.path / STATE).read_text())
        except ValueError as error:
            raise InputError(f"{self.path / STATE}: damaged ({error}); delete the folder and start again") from error
        now = json.loads(json.dumps(state))
        differences = [f"{key}: {was}, now {new}" for key, was, new in _differences(before, now)]
        if differences:
            text = "; ".join(differences)
            raise InputError(
                f"{self.path}: cannot resume, this run differs in {text}. Repeat those, or delete the folder"
            )

    def write_layer(self, index: int, packed: dict[str, PackedWeight], records: list[LinearRecord]) -> None:
        from safetensors.torch import save_file

        tensors = {f"{name}.{part}": t.cpu() for name, pw in packed.items() for part, t in pw.tensors().items()}
        metadata = {
            "layouts": json.dumps({name: pw.layout.to_dict() for name, pw in packed.items()}),
            "records": json.dumps([dataclasses.asdict(record) for record in records]),
        }
        _atomic(self._layer(index), lambda file: save_file(tensors, file, metadata))

    def read_layer(self, index: int) -> tuple[dict[str, PackedWeight], list[LinearRecord]] | None:
        """A finished layer, its tensors mapped from the file; None if it is not finished."""
        from safetensors import SafetensorError, safe_open

        path = self._layer(index)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors: dict[str, dict[str, Tensor]] = {}
                for key in file.keys():  # noqa: SIM118 - a safetensors handle is no dict
                    name, _, part = key.rpartition(".")
                    tensors.setdefault(name, {})[part] = file.get_tensor(key)
            packed = {}
            for name, values in json.loads(metadata["layouts"]).items():
                packed[name] = PackedWeight(layout=Layout.from_dict(values, name), **tensors[name]).validate(name)
            records = [LinearRecord(**record) for record in json.loads(metadata["records"])]
        except (SafetensorError, ArbError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); delete this file and resume again") from error
        return packed, records

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        _atomic(self.path / f"{name}.safetensors", lambda file: save_file(tensors, file))

    def read_tensors(self, name: str) -> dict[str, Tensor] | None:
        """What `write_tensors` wrote last under this name; None if nothing."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path / f"{name}.safetensors"
        try:
            return load_file(path) if path.is_file() else None
        except SafetensorError as error:
            raise InputError(f"{path}: damaged ({error}); delete the folder and start again") from error

    def remove(self) -> None:
        shutil.rmtree(self.path)

    def _layer(self, index: int) -> Path:
        return self.path / f"layer_{index:05d}.safetensors"


def _atomic(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [d for key in keys for d in _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if before == now else [(name, before, now)]
