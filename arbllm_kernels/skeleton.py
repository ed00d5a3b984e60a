"""Building a transformers model from a config that a stranger wrote, within the limits of the file it came in.

A config may ask for code, for endless loops or for any amount of memory. So keys that fetch code are refused, counts
are bounded by the number of stored tensors, and models are built with parameters that take no memory.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn.modules import module as hooks

from .archive import Archive
from .errors import ArbError, FormatError

# What building a model from a bad config raises; the messages are kept.
BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    StrictDataclassError,
)
# Config keys that fetch or run code. `eager` and `sdpa` are built into transformers.
CODE_KEYS = ("auto_map", "attn_implementation", "experts_implementation", "use_kernels", "custom_generate")
# Integers under such names become loops before any module is made, so the module limit would come too late.
COUNT_KEYS = ("layer", "expert", "label", "depth", "num_block", "n_block")
SIZE_KEYS = ("size", "dim", "width")  # expert_intermediate_size is no count
SPARE_COUNT = 1024  # modules, parameters or list items allowed beyond what the tensors explain


def read_config(archive: Archive, trust_remote_code: bool) -> Any:
    """The transformers config, after refusing what would run code or loop for ever."""
    from transformers import AutoConfig, PretrainedConfig

    most = len(archive.table) + SPARE_COUNT
    for key, value in _walk(archive.header.config):
        if key.startswith("_"):
            archive.fail(f"config key {key!r:.100}: keys with a leading underscore are not allowed")
        if key in CODE_KEYS and value not in (None, False, "eager", "sdpa") and not trust_remote_code:
            archive.fail(f"config.{key} asks for code from elsewhere; if you trust it, use trust_remote_code=True")
        if type(value) is int and value > most and _is_count(key.lower()):
            archive.fail(f"config.{key} = {value}: more than the file's {len(archive.table)} tensors could fill")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(archive.header.config))
        try:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
            )
        except BUILD_ERRORS as error:
            raise FormatError(f"{archive.path}: its model config is not usable: {brief(error)}") from error
    if not isinstance(config, PretrainedConfig):
        archive.fail("its model config is not usable")
    return config


def _is_count(key: str) -> bool:
    return any(word in key for word in COUNT_KEYS) and not any(word in key for word in SIZE_KEYS)


def _walk(values: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) pairs of nested objects; header.py bounds the depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            yield from _walk(value)
    elif isinstance(values, list):
        for value in values:
            yield from _walk(value)


class Builder:
    """Builds models for one file: parameters without memory, and no more modules than the file could fill."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.parameters = self.modules = 0

    def build(self, config: Any, trust_remote_code: bool, *, on_meta: bool) -> Any:
        """A model whose parameters take no memory; with `on_meta` its buffers take none either.

        Raises:
            FormatError: the config describes no model that transformers can build, or far too large a one.
        """
        from transformers import AutoModelForCausalLM

        self.parameters = self.modules = 0
        owner = threading.get_ident()  # the hooks are global; models that other threads build are not ours

        def parameter(module: nn.Module, name: str, value: Any) -> Any:
            if threading.get_ident() != owner or value is None:
                return None
            self.parameters += 1
            self._check(self.parameters, 2 * len(self.archive.table) + SPARE_COUNT)
            return value if value.is_meta else nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)

        def submodule(module: nn.Module, name: str, value: Any) -> None:
            if threading.get_ident() == owner:
                self.modules += 1
                self._check(self.modules, 16 * len(self.archive.table) + SPARE_COUNT)

        handles = (
            hooks.register_module_parameter_registration_hook(parameter),
            hooks.register_module_module_registration_hook(submodule),
        )
        try:
            with torch.device("meta") if on_meta else contextlib.nullcontext():
                loader: Any = AutoModelForCausalLM
                return loader.from_config(config, trust_remote_code=trust_remote_code)
        except ArbError:
            raise
        except BUILD_ERRORS as error:
            path = self.archive.path
            raise FormatError(f"{path}: no model can be built from its config: {brief(error)}") from error
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, count: int, limit: int) -> None:
        if count > limit:
            self.archive.fail("its config describes a model larger than the file could fill")


def brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
