"""Packed folders in vLLM: a quantization config and a linear method, registered through `vllm.general_plugins`.

vLLM fuses neighbouring linears (q, k and v; gate and up) into one layer, but every packed matrix has its own column
order and salient columns. So a fused layer keeps one ARBLinear per stored matrix and joins their outputs. vLLM's
loaders hand over one stored tensor at a time, with the number or letter of the part it belongs to. Its shape depends on
the file (salient columns), so a parameter starts empty and takes the stored tensor as it is.

Limits: one GPU or the CPU (no tensor parallelism), dense embeddings, no packed experts. docs/serving.md says what was
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from .errors import FormatError, InputError
from .folder import GUARD, METHOD, FolderInfo
from .header import PLANES
from .linear import X_DTYPES, ARBLinear
from .packed import PARTS, Layout, PackedWeight

GUARD_PART = "weight"  # folder.py puts an empty tensor of this name into one module
SHARDS = {"q": 0, "k": 1, "v": 2}  # vLLM numbers the parts of a fused layer, but names those of attention
MIN_CAPABILITY = 80  # of the CUDA kernels
REQUIRED = (*PLANES, "row_scale")


class ARBVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """`quantization_config` of a packed folder, as vLLM wants to be asked about it."""

    _ignore_unexpected_suffixes = (*QuantizationConfig._ignore_unexpected_suffixes, GUARD)

    def __init__(self, info: FolderInfo) -> None:
        super().__init__()
        if info.tables or info.ties.keys() & info.layouts.keys():
            raise InputError("vLLM: 8-bit embeddings and shared packed modules are not supported; keep them dense")
        self.info = info

    def get_name(self) -> Any:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(X_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return MIN_CAPABILITY

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # all of it is in config.json

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ARBVllmConfig:
        """Raises FormatError when the fields are damaged or newer."""
        return cls(FolderInfo.from_dict(config))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """A packed method where all the parts of a layer are packed, a dense one where none is.

        Raises:
            InputError: only some parts of a fused layer are packed.
        """
        if not isinstance(layer, LinearBase):
            return None
        owner, _, leaf = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(leaf, [leaf])
        names = [f"{owner}.{part}" if owner else part for part in parts]
        packed = [name for name in names if name in self.info.layouts]
        if not packed:
            return UnquantizedLinearMethod()
        if len(packed) < len(names):
            raise InputError(f"vLLM: of {prefix} only {', '.join(packed)} is packed; quantize all of its parts or none")
        return ARBLinearMethod([Layout.from_dict(self.info.layouts[name], name) for name in names])


class ARBLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """One vLLM layer of one or more packed matrices, whose outputs are joined."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self.layouts = layouts

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Raises InputError when vLLM has split the layer over several devices."""
        rows = [layout.rows for layout in self.layouts]
        if output_partition_sizes != rows or any(lay.cols != input_size_per_partition for lay in self.layouts):
            raise InputError(
                f"vLLM: a layer of {output_partition_sizes} x {input_size_per_partition} for packed matrices of {rows} "
                f"x {self.layouts[0].cols}; tensor parallelism is not supported"
            )
        for part in (*PARTS, GUARD_PART):
            dtype = torch.int32 if part in PLANES else torch.float16  # vLLM warns of every tensor of another one
            parameter = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            stored: dict[int, Tensor] = {}
            parameter.stored = stored  # type: ignore[attr-defined]
            parameter.weight_loader = _take  # type: ignore[attr-defined]
            layer.register_parameter(part, parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Replace the loaded tensors by ARBLinears. Raises FormatError when one is missing."""
        stored = {part: layer._parameters.pop(part).stored for part in (*PARTS, GUARD_PART)}  # type: ignore[union-attr]
        matrices = []
        for i, layout in enumerate(self.layouts):
            parts = {part: stored[part][i] for part in PARTS if i in stored[part]}
            absent = [part for part in REQUIRED if part not in parts]
            if absent:
                raise FormatError(f"vLLM: tensor {absent[0]} of a packed weight of {layout.rows} rows is missing")
            matrices.append(ARBLinear(PackedWeight(layout=layout, **parts).validate()))
        layer.matrices = nn.ModuleList(matrices)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., m] -> [..., sum of the parts' rows]."""
        outputs = [matrix(x) for matrix in layer.matrices]  # type: ignore[union-attr]
        y: Tensor = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return y if bias is None else y + bias


def _take(parameter: Any, loaded: Tensor, shard: int | str | None = None) -> None:
    """weight_loader of every part: keep the tensor, of the part `shard` of a fused layer, on the parameter's device."""
    index = 0 if shard is None else SHARDS[shard] if isinstance(shard, str) else shard
    parameter.stored[index] = loaded.to(parameter.device)


def register() -> None:
    """The entry point: vLLM calls it in every process, some more than once."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    if METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(METHOD)(ARBVllmConfig)
