"""GGUF files read tensor by tensor: memory-mapped, dequantized to float32 one at a time.

Names, config, tokenizer and the few layout changes (the q/k permutation of Llama, merged experts) are transformers' own
GGUF tables, asked tensor by tensor instead of for the whole file.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import Checkpoint, config_model, map_names
from .errors import InputError, UnsupportedModelError


class GGUFCheckpoint(Checkpoint):
    """A single `.gguf` file of an architecture that transformers can convert."""

    dtype = torch.float32

    def __init__(self, path: Path, config: Any, model: nn.Module, reader: Any, fields: dict[str, Any]) -> None:
        super().__init__(path, config, model)
        self._reader = reader
        tables = _transformers_tables()
        architecture = tables.read_field(reader, "general.architecture")[0]
        self._processor: Any = tables.TENSOR_PROCESSORS.get(architecture, tables.TensorProcessor)(config=fields)
        with _metadata_of(reader):
            self._map: dict[str, str] = tables.get_gguf_hf_weights_map(model, self._processor)
        self._shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        self._stored: dict[str, list[Any]] = {}
        for tensor in reader.tensors:
            # merged experts are listed without their suffix
            name = self._map.get(tensor.name) or self._map.get(tensor.name.rpartition(".")[0])
            if name is not None:
                self._stored.setdefault(name, []).append(tensor)
        self._names, missing = map_names(model, self._stored)
        if missing:
            raise UnsupportedModelError(
                f"{path}: {len(missing)} tensors of the model are missing, such as {missing[0]}"
            )
        self.note = f"{path.name}: its quantized tensors are dequantized one layer at a time."

    @classmethod
    def open(cls, path: Path) -> GGUFCheckpoint:
        """Raises InputError when the file is damaged, UnsupportedModelError when its architecture is unknown."""
        from transformers import CONFIG_MAPPING

        try:
            reader = _plain_reader()(path)
        except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
            raise InputError(f"{path}: not a readable GGUF file ({error})") from error
        fields: dict[str, Any] = {}

        def load_config() -> Any:
            with _metadata_of(reader):
                fields.update(_transformers_tables().load_gguf_checkpoint(str(path))["config"])
            return CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))

        config, model = config_model(load_config, str(path))
        return cls(path, config, model, reader, fields)

    def tensor(self, name: str) -> Tensor:
        from gguf import dequantize

        stored = self._names[name]
        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        value: np.ndarray[Any, Any] | None = None
        for tensor in self._stored[stored]:
            result = self._processor.process(
                weights=dequantize(tensor.data, tensor.tensor_type),
                name=tensor.name,
                tensor_key_mapping=self._map,
                parsed_parameters=parsed,
            )
            # a processor that returns no name has put the (partly filled) tensor into `parsed` itself
            value = result.weights if result.name is not None else parsed["tensors"][stored].numpy()
        shape = self._shapes[name]
        if value is None or list(value.shape) != shape:
            got = "nothing" if value is None else list(value.shape)
            raise InputError(f"{self.path}: {name} is {got}, the config asks for {shape}")
        return torch.from_numpy(np.array(value, dtype=np.float32, order="C"))

    def files(self) -> list[Path]:
        return [self.path]

    def tokenizer(self) -> Any | None:
        from transformers import AutoTokenizer

        with _metadata_of(self._reader):
            return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)


def _plain_reader() -> Any:
    """gguf's reader over a plain array, which is sliced faster than a memmap: 49,000 tokens in 0.7 s, not 2."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray[Any, Any]) -> None:
            self._plain = np.asarray(mapped)

    return Reader


@contextlib.contextmanager
def _metadata_of(reader: Any) -> Iterator[None]:
    """Let transformers use an open reader. Not for several threads at once: it replaces two names of the gguf package.

    By itself it parses the metadata once for the config and once for the tokenizer, and builds the table of tensor
    names anew for every submodule: seconds each where the vocabulary is large.
    """
    import gguf

    original, table = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lambda *_args, **_kwargs: reader  # type: ignore[assignment,misc]
    gguf.get_tensor_name_map = functools.cache(table)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = original, table  # type: ignore[misc]


def _transformers_tables() -> Any:
    """transformers' GGUF module; loaded on first use, and untyped."""
    from transformers import modeling_gguf_pytorch_utils

    return modeling_gguf_pytorch_utils
