"""Where the layer loop gets its layers from: a model in memory, or a checkpoint read one layer at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .archive import is_finite
from .checkpoints import Checkpoint
from .errors import InputError
from .layer_loop import LayerResult
from .linear import ARBLinear
from .models import find_layers, set_parameter
from .packed import PackedWeight
from .workdir import WorkFolder


class MemoryStore:
    """A model in memory, of any float dtype: a layer is float32 while it is worked on, then gets its dtype back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name, self.layers = find_layers(model)
        self._outer: list[tuple[Tensor, Tensor]] = []
        self._layer: list[tuple[Tensor, Tensor]] = []
        self._open: int | None = None

    def outer(self) -> None:
        inside = {id(t) for t in _tensors(self.layers)}
        head = _untied_head(self.model)
        self._outer = _to_float32(t for t in _tensors(self.model) if id(t) not in inside and t is not head)

    def outer_done(self) -> None:
        _restore(self._outer)

    def open(self, index: int) -> nn.Module:
        if self._open != index:
            self._layer = _to_float32(_tensors(self.layers[index]))
            self._open = index
        return self.layers[index]

    def finished(self, index: int) -> LayerResult | None:
        return None

    def keep(self, index: int, result: LayerResult) -> None:
        pass

    def close(self, index: int, packed: dict[str, PackedWeight]) -> None:
        _restore(self._layer)
        self._open = None
        replace_linears(self.layers[index], packed)

    def release(self) -> None:
        """Give a layer that was open when a run failed its dtype back."""
        _restore(self._layer)


class StreamStore:
    """A checkpoint on disk, the results of its layers in a work folder; one layer at a time is in a device's memory."""

    def __init__(self, checkpoint: Checkpoint, work: WorkFolder, device: torch.device) -> None:
        self.model, self._device = checkpoint.model, device
        self._move_buffers(device)
        self.name, self.layers = find_layers(self.model)
        self._checkpoint, self._work = checkpoint, work
        self._names = list(checkpoint.names())
        self._open: int | None = None

    def outer(self) -> None:
        head = _untied_head(self.model)
        for name in self._outer_names():
            if self._get(name) is not head:
                self._load(name)

    def outer_done(self) -> None:
        for name in self._outer_names():
            self._unload(name)

    def open(self, index: int) -> nn.Module:
        if self._open != index:
            for name in self.layers[index].state_dict():
                self._load(f"{self.name}.{index}.{name}")
            self._open = index
        return self.layers[index]

    def finished(self, index: int) -> LayerResult | None:
        return self._work.read_layer(index)

    def keep(self, index: int, result: LayerResult) -> None:
        self._work.write_layer(index, *result)

    def close(self, index: int, packed: dict[str, PackedWeight]) -> None:
        for name in self.layers[index].state_dict():
            self._unload(f"{self.name}.{index}.{name}")
        self._open = None

    def assemble(self, dtype: torch.dtype) -> nn.Module:
        """The finished model: packed weights mapped from the work folder, everything else in `dtype`.

        Raises:
            InputError: a value does not fit `dtype`.
        """
        packed_names = set()
        self._move_buffers(torch.device("cpu"))
        for index, layer in enumerate(self.layers):
            result = self._work.read_layer(index)
            if result is None:
                raise InputError(f"{self._work.path}: layer {index} has vanished; run again with --resume")
            replace_linears(layer, result[0])
            packed_names |= {f"{self.name}.{index}.{name}.weight" for name in result[0]}
        for name in self._names:
            if name not in packed_names:
                set_parameter(self.model, name, cast(name, self._checkpoint.tensor(name), dtype))
        return self.model

    def _outer_names(self) -> list[str]:
        """Stored tensors outside the decoder layers."""
        return [name for name in self._names if not name.startswith(f"{self.name}.")]

    def _get(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        return getattr(self.model.get_submodule(owner), leaf)  # type: ignore[no-any-return]

    def _load(self, name: str) -> None:
        value = self._checkpoint.tensor(name).to(self._device)
        set_parameter(self.model, name, value.float() if value.is_floating_point() else value)

    def _move_buffers(self, device: torch.device) -> None:
        """What a skeleton holds besides parameters, such as the frequencies of rotary embeddings."""
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)

    def _unload(self, name: str) -> None:
        tensor = self._get(name)
        if isinstance(tensor, nn.Parameter):  # persistent buffers are small and stay
            set_parameter(self.model, name, tensor.detach().to("meta"))


def replace_linears(layer: nn.Module, packed: dict[str, PackedWeight]) -> None:
    """Put an ARBLinear with the old bias where each linear was."""
    for name, weight in packed.items():
        owner, _, leaf = name.rpartition(".")
        old = layer.get_submodule(name)
        setattr(layer.get_submodule(owner), leaf, ARBLinear(weight, old.bias))  # type: ignore[arg-type]


def cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in `dtype` (integers stay). Raises InputError when a value leaves the range of `dtype`."""
    if not value.is_floating_point():
        return value
    result = value.to(dtype)
    if not is_finite(result):
        raise InputError(
            f"{name} has values up to {float(value.abs().max()):.3g}, beyond {dtype}; use another embed_dtype"
        )
    return result


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def _untied_head(model: nn.Module) -> Tensor | None:
    """The output head's weight where it is not the input embedding's too: calibration never needs it."""
    get_head, get_input = (getattr(model, f"get_{end}put_embeddings", None) for end in ("out", "in"))
    head = get_head() if get_head is not None else None
    if head is None or get_input is None or get_input() is None:
        return None
    return None if head.weight is get_input().weight else head.weight


def _to_float32(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Turn float tensors into float32 in place; returns what `_restore` needs to undo it."""
    changed = [(t, t.data) for t in tensors if t.is_floating_point() and t.dtype != torch.float32]
    for tensor, data in changed:
        tensor.data = data.float()
    return changed


def _restore(changed: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, data in changed:
        tensor.data = data
    changed.clear()
