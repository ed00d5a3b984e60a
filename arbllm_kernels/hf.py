"""Packed models in transformers: `ARBConfig` and `ARBQuantizer`, registered there as quantization method "arb".

    model = AutoModelForCausalLM.from_pretrained(folder)                                          # packed folder
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=ARBConfig("corpus.txt"))  # on the fly
    model.save_pretrained(folder)

What lies in a folder, and how it makes a transformers fail that does not know "arb", is in folder.py. Names, shapes and
dtypes are compared with the model before anything is loaded: transformers itself would fill gaps with random weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .calibration import SAMPLES, SEQLEN, calibration_ids, is_self
from .checkpoints import folder_tokenizer
from .config import QuantConfig
from .errors import FormatError, InputError
from .folder import METHOD, FolderInfo, guards, shapes_of
from .linear import X_DTYPES, ARBLinear
from .packed import PARTS, Layout, PackedWeight
from .table import EXACT, make_table


class ARBConfig(QuantizationConfigMixin):
    """What `from_pretrained` needs to binarize a dense checkpoint, and what a packed folder says about itself.

    Args:
        calibration: what `calibration_ids` takes (a text file, `hub:NAME`, `self`), or token ids, int64 [samples, T].
        samples, seqlen, seed, text_field: see `calibration_ids`; not used when ids are given.
        skip: regular expressions; linears in whose full name one is found stay dense.
        quant_method: always "arb".
        stored: the remaining fields of a folder's `quantization_config`; see folder.FolderInfo.
        fields: fields of QuantConfig, such as method="arb-rc", block_size=128.

    Raises:
        InputError: an unknown or bad field of QuantConfig.
        FormatError: stored fields are damaged or of a newer format.
    """

    def __init__(
        self,
        calibration: str | Path | Tensor = "self",
        *,
        samples: int = SAMPLES,
        seqlen: int = SEQLEN,
        seed: int = 0,
        text_field: str = "text",
        skip: Sequence[str] = (),
        quant_method: str = METHOD,
        **fields: Any,
    ) -> None:
        if quant_method != METHOD:
            raise InputError(f"ARBConfig: quant_method = {quant_method!r}, must be {METHOD!r}")
        self.quant_method: Any = METHOD  # transformers' own methods are members of an enumeration
        self.calibration, self.samples, self.seqlen, self.seed = calibration, samples, seqlen, seed
        self.text_field, self.skip = text_field, skip
        self.info = FolderInfo.from_dict(fields) if "layouts" in fields else None
        self.quantization = self.info.quant_config if self.info is not None else QuantConfig.from_dict(fields)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds. Raises InputError before there are packed weights to describe."""
        if self.info is not None:
            return {"quant_method": METHOD, **self.info.to_dict()}
        wanted = {} if self.quantization is None else self.quantization.to_dict()
        return {"quant_method": METHOD, **wanted}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()


class ARBQuantizer(HfQuantizer):
    """Loads packed folders into ARBLinear layers, and binarizes dense checkpoints once they are loaded."""

    requires_calibration = False
    quantization_config: ARBConfig

    def __init__(self, quantization_config: ARBConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._shared: dict[str, str] = {}  # module or tensor of the model -> the one it is the same as

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if dtype not in X_DTYPES:
            raise InputError(f"dtype = {dtype}: must be torch.float32, torch.bfloat16 or torch.float16")
        return dtype

    def update_device_map(self, device_map: Any) -> Any:
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise InputError("device_map puts a part on disk, from which packed weights cannot run; use cpu")
        return device_map

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        """Replace the linears by empty ARBLinears of the stored shapes, after comparing all names."""
        if not self.pre_quantized:
            return
        info = self.quantization_config.info
        if info is None or not info.layouts:
            raise FormatError("quantization_config of config.json describes no packed weight; get config.json again")
        if not checkpoint_files:
            raise InputError("a packed model is loaded from its safetensors files; state_dict= is not supported")
        stored = shapes_of(checkpoint_files)
        names = _Names(model, stored)
        for name, layout in info.layouts.items():
            module = names.module(name)
            layer = _empty_layer(name, Layout.from_dict(layout, name), stored, model.get_submodule(module))
            model.set_submodule(module, layer)
        for name in info.tables:
            module = names.module(name)
            model.set_submodule(module, _empty_table(name, stored, info.ties, model.get_submodule(module)))
        for name, source in info.ties.items():
            if source in info.layouts:
                self._shared[names.module(name)] = names.module(source)
                model.set_submodule(names.module(name), nn.Identity())  # nothing to load here
            else:
                self._shared[names.tensor(name)] = names.tensor(source)
        names.compare(self._shared)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if not self.pre_quantized:
            return self._quantize(model)
        for name, module in model.named_modules():
            if isinstance(module, ARBLinear):
                module.packed.validate(name, finite=False)
                module.refresh()
        for name, source in self._shared.items():
            owner, leaf = name.rpartition(".")[::2]
            other, other_leaf = source.rpartition(".")[::2]
            setattr(model.get_submodule(owner), leaf, getattr(model.get_submodule(other), other_leaf))
        return model

    def _quantize(self, model: Any) -> Any:
        from .pipeline import quantize_model

        config = self.quantization_config
        assert config.quantization is not None, "a request without layouts always has a QuantConfig"
        model.eval()
        quantize_model(model, _calibration(model, config), config.quantization, skip=config.skip)
        self.quantization_config, self.pre_quantized = model.config.quantization_config, True
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """For save_pretrained: the tensors of the folder form under the model's own names."""
        from .container import describe

        tensors, header = describe(model)
        model.config.quantization_config = _config_of(FolderInfo.from_header(header, tensors))
        # Or transformers would rename and split dense tensors back into the original checkpoint's.
        model._weight_conversions = []
        everything = tensors | guards(header)
        return {name: everything[name].detach() for name in sorted(everything)}, {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        if isinstance(dtype, str):  # as save_pretrained leaves it in the config
            dtype = getattr(torch, dtype)
        for name, module in list(model.named_modules()):
            if isinstance(module, ARBLinear):
                dense = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
                dense.weight = nn.Parameter(module.dequantize().to(dtype or torch.float32), requires_grad=False)
                dense.bias = module.bias  # type: ignore[assignment]
                model.set_submodule(name, dense)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def attach(model: nn.Module, quant_config: QuantConfig | None, extra: Any = None) -> None:
    """Let a transformers model that holds ARBLinears save itself with its own `save_pretrained`."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return
    from .container import describe

    loaded: Any = model
    tensors, header = describe(model, quant_config, extra)
    loaded.config.quantization_config = _config_of(FolderInfo.from_header(header, tensors))
    loaded.hf_quantizer = ARBQuantizer(loaded.config.quantization_config, pre_quantized=True)


def _config_of(info: FolderInfo) -> ARBConfig:
    return ARBConfig(**info.to_dict())


def _calibration(model: Any, config: ARBConfig) -> Tensor:
    """Token ids; the tokenizer comes from where the model came from."""
    if isinstance(config.calibration, Tensor):
        return config.calibration
    from transformers import AutoTokenizer

    source = Path(model.config.name_or_path)
    try:
        # some transformers make up a tokenizer for a folder that has none
        tokenizer = folder_tokenizer(source) if source.is_dir() else AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError):
        tokenizer = None
    if tokenizer is None and not is_self(config.calibration):
        raise InputError(
            f"ARBConfig: no tokenizer in {source} to read {config.calibration} with; give token ids instead"
        )
    return calibration_ids(
        config.calibration, tokenizer, config.samples, config.seqlen, config.seed, model, text_field=config.text_field
    )


class _Names:
    """Tensor names of a folder and of a model, which may differ by the base model's prefix ("model.")."""

    def __init__(self, model: Any, stored: Mapping[str, Any]) -> None:
        self.model, self.stored = model, stored
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.prefix = f"{model.base_model_prefix}."

    def module(self, name: str) -> str:
        """The model's name of a stored module. Raises FormatError if it has none."""
        for other in (name, name.removeprefix(self.prefix), self.prefix + name):
            if other in self.modules:
                return other
        raise FormatError(f"packed weight {name}: {type(self.model).__name__} has no module of this name")

    def tensor(self, name: str) -> str:
        """The model's name of a stored tensor."""
        owner, _, leaf = name.rpartition(".")
        return f"{self.module(owner)}.{leaf}"

    def compare(self, shared: Mapping[str, str]) -> None:
        """Every tensor of the model must be stored, and the other way round. Raises FormatError naming the first."""
        wanted = set(self.model.state_dict())
        absent = {name for name in wanted if not self._candidates(name) & self.stored.keys()}
        ties = self.model.all_tied_weights_keys  # of parameters, which an 8-bit table has none of
        for name in [name for name in ties if name.removesuffix(".weight") + ".codes" in wanted]:
            del ties[name]
        absent -= ties.keys() | shared.keys()
        if absent:
            raise FormatError(f"{len(absent)} tensors are missing, such as {min(absent)}; get the folder again")
        known = {other for name in wanted for other in self._candidates(name)}
        unplaced = self.stored.keys() - known
        empty = {name for name in unplaced if 0 in self.stored[name][1]}  # the guards of folder.py
        extra = unplaced - empty
        headless = getattr(self.model, "base_model", None) is self.model
        if extra and not headless:
            name = type(self.model).__name__
            raise FormatError(f"{name} has no place for {len(extra)} stored tensors, such as {min(extra)}")
        self._ignore("_keys_to_ignore_on_load_unexpected", empty)
        self._ignore("_keys_to_ignore_on_load_missing", shared)

    def _ignore(self, attribute: str, names: Iterable[str]) -> None:
        """Tell transformers not to warn about these tensors."""
        before = getattr(self.model, attribute)
        kind = set if isinstance(before, set) else list  # a list, or None, in the first releases of transformers 5
        setattr(self.model, attribute, kind([*(before or ()), *(rf"^{re.escape(name)}$" for name in names)]))

    def _candidates(self, name: str) -> set[str]:
        return {name, name.removeprefix(self.prefix), self.prefix + name}


def _empty_layer(name: str, layout: Layout, stored: Mapping[str, tuple[torch.dtype, Any]], old: nn.Module) -> ARBLinear:
    """An ARBLinear on the meta device in place of `old`, of the stored dtypes and shapes."""
    if not isinstance(old, nn.Linear) or old.weight.shape != (layout.rows, layout.cols):
        shape = list(old.weight.shape) if isinstance(old, nn.Linear) else type(old).__name__
        raise FormatError(f"packed weight {name} is {layout.rows} x {layout.cols}, the model has {shape} there")
    parts = {}
    for part in PARTS:
        if f"{name}.{part}" in stored:
            dtype, shape = stored[f"{name}.{part}"]
            parts[part] = torch.empty(shape, dtype=dtype, device="meta")
    missing = [f.name for f in dataclasses.fields(PackedWeight) if f.default is dataclasses.MISSING]
    missing = [part for part in missing if part != "layout" and part not in parts]
    if missing:
        raise FormatError(f"packed weight {name}: tensor {name}.{missing[0]} is missing; get the folder again")
    return ARBLinear(PackedWeight(layout=layout, **parts), old.bias)


def _empty_table(
    name: str, stored: Mapping[str, tuple[torch.dtype, Any]], ties: Mapping[str, str], old: nn.Module
) -> nn.Module:
    """An 8-bit table on the meta device in place of the nn.Embedding or nn.Linear `old`."""
    parts = [ties.get(key, key) for key in (f"{name}.codes", f"{name}.scale")]
    absent = [key for key in parts if key not in stored]
    if absent:
        raise FormatError(f"8-bit table {name}: tensor {absent[0]} is missing; get the folder again")
    if type(old) not in EXACT:
        raise FormatError(f"8-bit table {name}: the model has {type(old).__name__} there, no nn.Embedding or nn.Linear")
    weight: Any = old.weight
    (code_type, shape), (_, rows) = (stored[key] for key in parts)
    if tuple(shape) != tuple(weight.shape) or tuple(rows) != (shape[0],) or code_type != torch.int8:
        raise FormatError(f"8-bit table {name}: {code_type} {list(shape)}, the model has {list(weight.shape)} there")
    codes = torch.empty(shape, dtype=torch.int8, device="meta")
    scale = torch.empty(rows, dtype=weight.dtype, device="meta")
    return make_table(old, codes, scale, getattr(old, "bias", None))


if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(ARBConfig)
    register_quantizer(METHOD)(ARBQuantizer)
