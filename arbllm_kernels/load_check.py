"""Whether a packed model really loads and runs here: every value, every name, and one pass through the model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .archive import is_finite, read
from .errors import FormatError, InputError
from .evaluate import load_any
from .linear import ARBLinear
from .models import vocab_size

TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class LoadCheck:
    """What was found.

    Attributes:
        model: class of the transformers model.
        weights: packed weights in it; dense: other tensors.
        bits_per_weight: true bits of the packed weights.
        tokenizer: whether one is stored.
    """

    model: str
    weights: int
    dense: int
    bits_per_weight: float
    tokenizer: bool


@torch.no_grad()
def load_check(path: str | os.PathLike[str]) -> LoadCheck:
    """Check an `.arb` file (checksums included) or a packed folder, load it as users would, and run a few tokens.

    Raises:
        InputError: there is no such model, or it is not packed.
        FormatError: what is damaged, missing or too much, and where; or the model's output is not finite.
    """
    from .folder import is_packed_folder
    from .pipeline import bits_per_weight

    source = Path(path)
    if source.is_file():
        read(source).check_content()
    elif not is_packed_folder(source):
        raise InputError(f"{source}: neither an .arb file nor a folder packed by this package")
    model: Any
    model, tokenizer = load_any(source)
    packed = {name: module for name, module in model.named_modules() if isinstance(module, ARBLinear)}
    for name, module in packed.items():
        module.packed.validate(name)
    dense = {n: t for n, t in model.state_dict().items() if n.rpartition(".")[0] not in packed}
    for name, tensor in dense.items():
        if not is_finite(tensor):
            raise FormatError(f"{source}: tensor {name} holds NaN or Inf")
    ids = torch.arange(min(TOKENS, vocab_size(model) or TOKENS))[None]
    if not is_finite(model(input_ids=ids.to(model.device), use_cache=False).logits):
        raise FormatError(f"{source}: the model's output holds NaN or Inf")
    return LoadCheck(
        model=type(model).__name__,
        weights=len(packed),
        dense=len(dense),
        bits_per_weight=bits_per_weight(model),
        tokenizer=tokenizer is not None,
    )
