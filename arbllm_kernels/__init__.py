"""Binarize large language models after training, store them truly packed, run them fast.

    import arbllm_kernels as arb
    packed = arb.quantize_weight(W, H, arb.QuantConfig(method="arb-rc"))
    model, tokenizer = arb.load("model.arb")

What works on whole models is loaded on first use, so that importing the package does not import transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import QuantConfig
from .errors import ArbError, CalibrationError, FormatError, InputError, UnsupportedModelError
from .linear import ARBLinear, linear  # at once: the function must win over the module of the same name
from .methods import quantize_weight
from .packed import PackedWeight
from .registration import register

if TYPE_CHECKING:
    from .container import load, save, verify
    from .evaluate import perplexity
    from .folder import convert, save_folder
    from .hf import ARBConfig
    from .pipeline import bits_per_weight, quantize_model
    from .table import round_embeddings
    from .tune import tune_model
    from .tuning import tune_file

__version__ = "0.1.0"

_ON_FIRST_USE = {
    "ARBConfig": "hf",
    "bits_per_weight": "pipeline",
    "convert": "folder",
    "load": "container",
    "perplexity": "evaluate",
    "quantize_model": "pipeline",
    "round_embeddings": "table",
    "save": "container",
    "save_folder": "folder",
    "tune_file": "tuning",
    "tune_model": "tune",
    "verify": "container",
}

__all__ = [
    "ARBConfig",
    "ARBLinear",
    "ArbError",
    "CalibrationError",
    "FormatError",
    "InputError",
    "PackedWeight",
    "QuantConfig",
    "UnsupportedModelError",
    "bits_per_weight",
    "convert",
    "linear",
    "load",
    "perplexity",
    "quantize_model",
    "quantize_weight",
    "round_embeddings",
    "save",
    "save_folder",
    "tune_file",
    "tune_model",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
    globals()[name] = value
    return value


register()
