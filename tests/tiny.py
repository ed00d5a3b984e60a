"""Tiny things to put into files: random blocks, Llama models of a few kilobytes, a tokenizer."""

from __future__ import annotations

import torch
from helpers import random_packed
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from arbllm_kernels.block import Block
from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.packed import Layout


def random_blocks(
    layout: Layout, *, means: bool, column_scales: bool, share: float = 0.3, dtype=torch.float16, seed: int = 0
) -> list[Block]:
    """Blocks of every bit and scale at random; about `share` of the columns are salient."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    n, order2, salient_groups = layout.rows, layout.salient_order == 2, layout.salient_groups
    blocks = []
    for start in range(0, layout.cols, layout.block_size):
        k = min(layout.block_size, layout.cols - start)
        salient = rand(k) < share
        blocks.append(
            Block(
                salient=salient,
                group=torch.randint(0, layout.groups, (n, k), generator=generator),
                sign=rand(n, k) > 0.5,
                second=(rand(n, k) > 0.5) & salient if order2 else None,
                row_scale=rand(n, layout.scales_per_block).to(dtype),
                mean=(rand(n, layout.zones) - 0.5).to(dtype) if means else None,
                col_scale=rand(layout.groups, k).to(dtype) if column_scales else None,
                col_scale2=(rand(salient_groups, k) * salient).to(dtype) if column_scales and order2 else None,
                salient_groups=salient_groups,
            )
        )
    return blocks


def pack_linears(model: nn.Module) -> nn.Module:
    """Replace every Linear but the head by a random packed one, in place."""
    for seed, (name, module) in enumerate(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            model.set_submodule(
                name, ARBLinear(random_packed(*module.weight.shape, 32, exponent=-5, seed=seed), module.bias)
            )
    return model


def llama(*, tied: bool = False, bias: bool = False, dtype: torch.dtype = torch.float32, vocab: int = 128) -> nn.Module:
    """A dense two-layer Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        vocab_size=vocab,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # .to(dtype) would round the rotary tables


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token of `llama`, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({**{f"w{i}": i for i in range(127)}, "[UNK]": 127}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    wrapped.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return wrapped
