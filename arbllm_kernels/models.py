"""What the pipeline has to know about a model: where its decoder layers are, and how to build it without its weights.

Nothing here goes by model name. The decoder is the `nn.ModuleList` of same-class layers holding `nn.Linear`s that has
the most parameters; a layer's binarizable weights are the `nn.Linear`s inside it. A *skeleton* is the model with every
parameter on the meta device (no memory) and every buffer real, so that its forward pass runs as soon as the parameters
a pass touches are loaded.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .archive import is_finite
from .errors import InputError, UnsupportedModelError


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a causal LM and their name, e.g. ("model.layers", ModuleList).

    Raises:
        UnsupportedModelError: no list of same-class layers holds an nn.Linear; the message lists what was seen.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    seen = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        seen.append(f"{name} ({len(module)} x {type(module[0]).__name__})")
        if any(type(layer) is not type(module[0]) for layer in module) or not any(_linear_names(module)):
            continue
        size = sum(p.numel() for p in module.parameters())
        if best is None or size > best[0]:
            best = (size, name, module)
    if best is None:
        found = f"module lists seen: {', '.join(seen)}" if seen else "it has no nn.ModuleList at all"
        raise UnsupportedModelError(
            f"{type(model).__name__}: found no list of same-class decoder layers holding nn.Linear; {found}"
        )
    return best[1], best[2]


def layer_linears(layer: nn.Module, prefix: str, skip: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """Linears of one layer by their name inside it, without those whose full name matches a regex of `skip`."""
    names = (name for name in _linear_names(layer) if not is_skipped(f"{prefix}.{name}", skip))
    return {name: layer.get_submodule(name) for name in names}  # type: ignore[misc]


def is_skipped(name: str, skip: Sequence[str]) -> bool:
    """Whether one of the regular expressions is found in a full module name such as "model.layers.0.mlp.up_proj"."""
    return any(re.search(pattern, name) for pattern in skip)


def check_skip(model: nn.Module, stack: str, skip: Sequence[str]) -> None:
    """Raises InputError for a plain str, a bad or idle regex (no linear of the stack matches), or if none is left."""
    if isinstance(skip, str):  # a sequence too, of one-letter patterns that match nearly everything
        raise InputError(f"skip is the str {skip!r}: give a list or tuple of patterns, such as [{skip!r}]")
    names = [f"{stack}.{name}" for name in _linear_names(model.get_submodule(stack))]
    for pattern in skip:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"skip pattern {pattern!r} is no regular expression: {error}") from error
        if not any(is_skipped(name, [pattern]) for name in names):
            raise InputError(f"skip pattern {pattern!r} matches no linear; names look like {names[0]!r}")
    if all(is_skipped(name, skip) for name in names):
        raise InputError(f"skip patterns {list(skip)} leave no linear to quantize")


def dense_share(stack: nn.ModuleList) -> tuple[float, list[str]]:
    """(share, names): matrices of the decoder layers that are not nn.Linear weights, so that they stay dense.

    `share` is of all weights of the stack's parameters with two dimensions or more; names are those of layer 0.
    """
    linear = {id(module.weight) for module in stack.modules() if isinstance(module, nn.Linear)}
    matrices = [(name, p) for name, p in stack.named_parameters() if p.dim() >= 2]
    other = [(name, p) for name, p in matrices if id(p) not in linear]
    total = sum(p.numel() for _, p in matrices)
    names = [name.split(".", 1)[1] for name, _ in other if name.startswith("0.")]
    return sum(p.numel() for _, p in other) / max(total, 1), names


def context_length(model: nn.Module) -> int | None:
    """Longest sequence the model's config allows, in tokens; None where it does not say."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    value = getattr(text, "max_position_embeddings", None)
    return int(value) if isinstance(value, int) and value > 0 else None


def vocab_size(model: nn.Module) -> int | None:
    """Rows of the input embedding; None where the model has no `get_input_embeddings`."""
    get = getattr(model, "get_input_embeddings", None)
    embedding = get() if get is not None else None
    weight = getattr(embedding, "weight", None)
    return None if weight is None else int(weight.shape[0])


def check_ids(ids: Any, model: nn.Module) -> Tensor:
    """Calibration or evaluation token ids, int64 [samples, seqlen], checked against the model.

    Raises:
        InputError: wrong type, dtype, shape or range, empty, or longer than the model's context.
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"calibration ids are {got}: must be an int64 tensor [samples, seqlen]")
    if ids.numel() == 0:
        raise InputError(f"calibration ids are empty ({list(ids.shape)}): at least one token of one sample is needed")
    check_length(ids.shape[1], model)
    check_vocabulary(ids, model)
    return ids


def check_length(seqlen: int, model: nn.Module) -> None:
    """Raises InputError when a window of `seqlen` tokens does not fit the model's context."""
    limit = context_length(model)
    if limit is not None and seqlen > limit:
        raise InputError(f"seqlen {seqlen} is longer than the model's context of {limit} tokens")


def check_vocabulary(ids: Tensor, model: nn.Module) -> None:
    """Raises InputError when a token id is none of the model's."""
    vocab, low, high = vocab_size(model), int(ids.min()), int(ids.max())
    if low < 0 or (vocab is not None and high >= vocab):
        raise InputError(f"token ids span {low}..{high}, the model knows 0..{vocab - 1 if vocab else '?'}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises InputError naming the tensor when it holds NaN or Inf."""
    if tensor.is_floating_point() and not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(f"{name} {list(tensor.shape)}: {bad} of {tensor.numel()} values are NaN or Inf")


def skeleton(config: Any) -> nn.Module:
    """The causal LM of a transformers config in float32: parameters on the meta device, buffers computed as usual."""
    from transformers import AutoModelForCausalLM

    with _parameters_on_meta():
        builder: Any = AutoModelForCausalLM
        model: nn.Module = builder.from_config(copy.deepcopy(config), dtype=torch.float32)
    return model.eval()


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` where the parameter or persistent buffer `name` is, in every module that shares it."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, leaf)
    if not isinstance(old, nn.Parameter):
        module.register_buffer(leaf, value)
        return
    new = nn.Parameter(value, requires_grad=False)
    for other in model.modules():
        for key, parameter in other._parameters.items():
            if parameter is old:
                other._parameters[key] = new


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While active, every nn.Parameter that is registered moves to the meta device; buffers stay real.

    Building everything under torch.device("meta") would also lose non-persistent buffers (rotary frequencies, embedding
    scales), which are in no checkpoint.
    """
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _linear_names(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
