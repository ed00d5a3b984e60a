"""Checkpoints read tensor by tensor: safetensors folders, GGUF files, and whatever only transformers can load.

`open_checkpoint` returns a `Checkpoint`: the model's skeleton (models.py) and `tensor(name)`, which gives any tensor of
the skeleton's state dict in the checkpoint's own dtype (GGUF: dequantized to float32). Nothing is read before it is
asked for, so that a caller holds one decoder layer at a time. A folder whose tensors do not map one to one onto the
model (fused experts, for instance) is loaded whole by transformers in its own dtype, and `note` says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .errors import InputError, UnsupportedModelError
from .models import set_parameter, skeleton

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
EDGE = 1 << 20  # bytes hashed at either end of a file for its fingerprint


class Checkpoint(ABC):
    """A model's weights on disk.

    Attributes:
        path: the folder or the GGUF file.
        config: the transformers config, as stored.
        model: the skeleton; parameters are on the meta device.
        dtype: the stored dtype of the input embedding, torch.float32 for GGUF.
        note: a sentence for the user about how the weights are read, or None.
    """

    path: Path
    config: Any
    model: nn.Module
    dtype: torch.dtype
    note: str | None = None

    def __init__(self, path: Path, config: Any, model: nn.Module) -> None:
        self.path, self.config, self.model = path, config, model

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """The tensor `name` of the model's state dict; a copy, aligned like any torch tensor."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that the weights and the config come from."""

    @abstractmethod
    def tokenizer(self) -> Any | None:
        """The transformers tokenizer, None where the checkpoint holds none."""

    def names(self) -> Iterator[str]:
        """Every tensor of the model once: of tied parameters only the first name."""
        first = {names[0] for names in aliases(self.model).values()}
        parameters = {name for names in aliases(self.model).values() for name in names}
        for name in self.model.state_dict():
            if name in first or name not in parameters:
                yield name

    def fingerprint(self) -> dict[str, str]:
        """File name -> size and SHA-256 of both ends of the file."""
        return {path.name: _file_fingerprint(path) for path in self.files()}

    def materialize(self, dtype: torch.dtype) -> nn.Module:
        """The whole model in `dtype`, apart from the skeleton; for text generation only."""
        model = skeleton(self.config)
        for name in self.names():
            value = self.tensor(name)
            set_parameter(model, name, value.to(dtype) if value.is_floating_point() else value)
        return model


class SafetensorsCheckpoint(Checkpoint):
    """One `model.safetensors`, or several with an index, whose names map one to one onto the model."""

    def __init__(self, folder: Path, config: Any, model: nn.Module, where: dict[str, tuple[Path, str]]) -> None:
        super().__init__(folder, config, model)
        self._where = where
        self._open: dict[Path, Any] = {}
        self.dtype = self.tensor(_embedding_name(model)).dtype

    def tensor(self, name: str) -> Tensor:
        path, key = self._where[name]
        tensor: Tensor = self._handle(path).get_tensor(key)
        return tensor.clone()

    def files(self) -> list[Path]:
        return [*sorted({path for path, _ in self._where.values()}), self.path / "config.json"]

    def tokenizer(self) -> Any | None:
        return folder_tokenizer(self.path)

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        return self._open[path]


class LoadedCheckpoint(Checkpoint):
    """A folder that transformers had to load whole, in its own dtype."""

    def __init__(self, folder: Path, config: Any, model: nn.Module, why: str) -> None:
        super().__init__(folder, config, model)
        self._state = _load_whole(folder)
        self.dtype = self._state[_embedding_name(model)].dtype
        self.note = f"{why}; transformers loaded the whole model in {str(self.dtype).removeprefix('torch.')}."

    def tensor(self, name: str) -> Tensor:
        return self._state[name].clone()

    def files(self) -> list[Path]:
        weights = [p for pattern in ("*.safetensors", "*.bin") for p in self.path.glob(pattern)]
        return [*sorted(weights), self.path / "config.json"]

    def tokenizer(self) -> Any | None:
        return folder_tokenizer(self.path)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a local folder, a `.gguf` file, or (only when neither exists) a hub id, which is downloaded first.

    Raises:
        InputError: there is no such file or folder and it is no hub id either, or a file is damaged.
        UnsupportedModelError: transformers knows no causal LM of this kind, or tensors are missing.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(f"{path}: a checkpoint is a folder, a hub id or a .gguf file")
        from .gguf import GGUFCheckpoint

        return GGUFCheckpoint.open(path)
    if not path.is_dir():
        path = _download(str(source))
    return _open_folder(path)


def config_model(load_config: Any, what: str) -> tuple[Any, nn.Module]:
    """(config, skeleton) from a function that loads the config. Raises UnsupportedModelError with the reason."""
    try:
        config = load_config()
        model = skeleton(config)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise UnsupportedModelError(f"{what}: transformers cannot build a causal LM from it: {error}") from error
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        kind = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedModelError(f"{what}: is quantized already ({kind}); give the original checkpoint")
    return config, model


def aliases(model: nn.Module) -> dict[int, list[str]]:
    """Parameter id -> all its names; tied parameters have several."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return groups


def map_names(model: nn.Module, stored: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(model name -> stored name, model names that are nowhere).

    Tolerates a missing or an additional base-model prefix ("model."), and tied parameters stored under any name.
    """
    prefix = getattr(model, "base_model_prefix", "") + "."
    alias = {name: names for names in aliases(model).values() for name in names}
    found, missing = {}, []
    for name in model.state_dict():
        for other in [name, *alias.get(name, [])]:
            key = next((k for k in (other, other.removeprefix(prefix), prefix + other) if k in stored), None)
            if key is not None:
                found[name] = key
                break
        else:
            missing.append(name)
    return found, missing


def _open_folder(folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no config.json, so it is no Hugging Face checkpoint")
    from transformers import AutoConfig

    config, model = config_model(lambda: AutoConfig.from_pretrained(folder), str(folder))
    stored = stored_tensors(folder)
    if not stored:
        return LoadedCheckpoint(folder, config, model, f"{folder.name} holds no safetensors files")
    originals = _renamed(model, stored)
    found, missing = map_names(model, originals)
    if missing:
        why = f"{len(missing)} tensors are stored under other names or in other pieces (such as {missing[0]})"
        return LoadedCheckpoint(folder, config, model, why)
    where = {name: (stored[originals[key]][0], originals[key]) for name, key in found.items()}
    state = model.state_dict()
    for name, (path, key) in where.items():
        shape = stored[key][1]
        if shape != list(state[name].shape):
            raise InputError(f"{path}: {key} is {shape}, the config asks for {list(state[name].shape)}")
    return SafetensorsCheckpoint(folder, config, model, where)


def _renamed(model: nn.Module, stored: dict[str, Any]) -> dict[str, str]:
    """The name transformers gives a stored tensor -> its stored name; tensors that it splits or merges are left out."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:  # transformers before 5 loads every tensor under its stored name
        return {key: key for key in stored}
    transforms: list[Any] = get_model_conversion_mapping(cast(Any, model))
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    names = {key: rename_source_key(key, renamings, converters) for key in stored}
    return {name: key for key, (name, conversion) in names.items() if conversion is None}


def stored_tensors(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """Tensor name -> (file, shape), from the index where there is one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index}: no readable weight_map ({error})") from error
        files = [folder / str(name) for name in names]
        for path in files:
            if path.parent != folder or not path.is_file():
                raise InputError(f"{index}: names {path.name}, which is not in the folder")
    else:
        single = folder / "model.safetensors"
        files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    stored = {}
    for path in files:
        handle = open_safetensors(path)
        for key in handle.keys():  # noqa: SIM118 - a safetensors handle is no dict
            stored[key] = (path, list(handle.get_slice(key).get_shape()))
    return stored


def open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def _load_whole(folder: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(folder, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UnsupportedModelError(f"{folder}: transformers cannot load it: {error}") from error
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise UnsupportedModelError(f"{folder}: {len(names)} tensors are missing, such as {names[0]}")
    return dict(model.state_dict())


def _download(source: str) -> Path:
    if source.lower().endswith(".gguf") or HUB_ID.fullmatch(source) is None:
        raise InputError(f"{source}: no such file or folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors", *SMALL_FILES]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=["*.bin", *SMALL_FILES]))
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source}: no such local folder, and the hub gave: {reason}") from error
    return folder


def folder_tokenizer(folder: Path) -> Any | None:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _embedding_name(model: nn.Module) -> str:
    """Name of the input embedding, whose dtype stands for the checkpoint's."""
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    return next(name for name, parameter in model.named_parameters() if parameter is weight)


def _file_fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        digest.update(file.read(EDGE))
    return f"{size} bytes, {digest.hexdigest()[:16]}"
