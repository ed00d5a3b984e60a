"""The vLLM plugin against a stand-in for the part of vLLM's interface that it uses. vLLM itself is not run here.

The stand-in does what vLLM's LinearBase, model loaders and registry do with a quantization method, and nothing else.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

import arbllm_kernels as arb
from arbllm_kernels.errors import FormatError, InputError
from arbllm_kernels.folder import GUARD, read_folder

LINEAR = "vllm.model_executor.layers.linear"
QUANTIZATION = "vllm.model_executor.layers.quantization"


class LinearMethodBase:
    def process_weights_after_loading(self, layer: nn.Module) -> None:
        pass


class UnquantizedLinearMethod(LinearMethodBase):
    pass


class QuantizationConfig:
    _ignore_unexpected_suffixes = (".q_scale",)

    def __init__(self) -> None:
        self.packed_modules_mapping: dict[str, list[str]] = {}


class LinearBase(nn.Module):
    def __init__(self, prefix: str, cols: int, rows: list[int], config: Any) -> None:
        super().__init__()
        self.quant_method = config.get_quant_method(self, prefix)
        if not isinstance(self.quant_method, UnquantizedLinearMethod):
            self.quant_method.create_weights(self, cols, rows, cols, sum(rows), torch.float32, weight_loader=None)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """arbllm_kernels.vllm_plugin, imported with the stand-in in place of vLLM."""
    above = ("vllm", "vllm.model_executor", "vllm.model_executor.layers")
    names = (*above, LINEAR, QUANTIZATION, f"{QUANTIZATION}.base_config")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules[LINEAR].LinearBase, modules[LINEAR].LinearMethodBase = LinearBase, LinearMethodBase
    modules[LINEAR].UnquantizedLinearMethod = UnquantizedLinearMethod
    modules[f"{QUANTIZATION}.base_config"].QuantizationConfig = QuantizationConfig
    registry = modules[QUANTIZATION]
    registry.QUANTIZATION_METHODS, registry.configs = ["awq"], {}

    def register_quantization_config(name: str) -> Any:
        def keep(cls: type) -> type:
            if name in registry.QUANTIZATION_METHODS:
                raise ValueError(f"{name} exists")
            registry.QUANTIZATION_METHODS.append(name)
            registry.configs[name] = cls
            return cls

        return keep

    registry.register_quantization_config = register_quantization_config
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop("arbllm_kernels.vllm_plugin", None)
    yield importlib.import_module("arbllm_kernels.vllm_plugin")
    sys.modules.pop("arbllm_kernels.vllm_plugin", None)


@pytest.fixture
def config(plugin: ModuleType, tmp_path: Path) -> Any:
    """The plugin's config of a tiny packed folder, found through the registry as vLLM finds it."""
    arb.save_folder(tiny.pack_linears(tiny.llama(bias=True)), tmp_path / "m")
    plugin.register()
    plugin.register()  # vLLM calls it more than once
    values = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    made = sys.modules[QUANTIZATION].configs["arb"].from_config(values)  # type: ignore[attr-defined]
    made.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    return made


def load(layer: LinearBase, tensors: dict[str, torch.Tensor], prefix: str, parts: dict[str, Any]) -> None:
    """What vLLM's models do: rename the part to the fused layer, then call the parameter's loader."""
    parameters = dict(layer.named_parameters())
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        for part, shard in parts.items():
            if owner == f"{prefix}.{part}" and leaf != "bias":
                arguments = () if shard is None else (shard,)
                parameters[leaf].weight_loader(parameters[leaf], tensor, *arguments)
    layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize(
    ("prefix", "fused", "parts"),
    [
        ("model.layers.0.self_attn", "qkv_proj", {"q_proj": "q", "k_proj": "k", "v_proj": "v"}),
        ("model.layers.1.mlp", "gate_up_proj", {"gate_proj": 0, "up_proj": 1}),
        ("model.layers.0.mlp", "down_proj", {"down_proj": None}),  # the module that holds the guard
    ],
)
def test_layers_multiply_as_ours_do(
    config: Any, tmp_path: Path, prefix: str, fused: str, parts: dict[str, Any]
) -> None:
    model = tiny.pack_linears(tiny.llama(bias=True))
    ours = [model.get_submodule(f"{prefix}.{part}") for part in parts]
    layer = LinearBase(f"{prefix}.{fused}", ours[0].in_features, [m.out_features for m in ours], config)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert f"{prefix}.{next(iter(parts))}.weight" in tensors or fused != "down_proj"
    load(layer, tensors, prefix, parts)
    x, bias = torch.randn(3, ours[0].in_features), torch.randn(sum(m.out_features for m in ours))
    expected = torch.cat([arb.linear(x, m.packed) for m in ours], -1)
    assert torch.equal(layer.quant_method.apply(layer, x), expected)
    assert torch.equal(layer.quant_method.apply(layer, x, bias), expected + bias)
    assert not list(layer.named_parameters())


def test_what_is_not_packed_stays_dense(config: Any) -> None:
    dense = LinearBase("lm_head", 64, [128], config)
    assert isinstance(dense.quant_method, UnquantizedLinearMethod)
    assert config.get_quant_method(nn.Embedding(3, 3), "model.embed_tokens") is None


def test_the_rest_of_the_interface(config: Any) -> None:
    assert config.get_name() == "arb" and torch.bfloat16 in config.get_supported_act_dtypes()
    assert config.get_min_capability() == 80 and config.get_config_filenames() == []
    assert GUARD.endswith(config._ignore_unexpected_suffixes)


def test_what_it_cannot_do_is_refused(config: Any, plugin: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tensor parallelism"):
        LinearBase("model.layers.0.mlp.down_proj", 48, [64], config)
    del config.info.layouts["model.layers.0.self_attn.k_proj"]
    with pytest.raises(InputError, match=r"only .*q_proj.* is packed"):
        LinearBase("model.layers.0.self_attn.qkv_proj", 64, [64, 32, 32], config)
    layer = LinearBase("model.layers.0.mlp.down_proj", 96, [64], config)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.second"]
    with pytest.raises(FormatError, match="second"):
        load(layer, tensors, "model.layers.0.mlp", {"down_proj": None})
    with pytest.raises(FormatError, match="format_version"):
        plugin.ARBVllmConfig.from_config({"quant_method": "arb", "format_version": 99})
    model = tiny.pack_linears(tiny.llama())
    arb.round_embeddings(model)
    arb.save_folder(model, tmp_path / "rounded")
    _, header, _ = read_folder(tmp_path / "rounded")
    with pytest.raises(InputError, match="8-bit embeddings"):
        plugin.ARBVllmConfig(plugin.FolderInfo.from_header(header, ()))
