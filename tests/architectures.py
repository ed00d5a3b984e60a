"""Tiny randomly initialised models of every architecture the pipeline promises, and a mixture of nn.Linear experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VOCAB, HIDDEN, CONTEXT = 128, 64, 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
# a window shorter than the test sequences, so that sliding and full attention layers really get different masks
SLIDING = {**GROUPED, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def _llama(**changes: Any) -> nn.Module:
    import transformers as t

    return t.LlamaForCausalLM(t.LlamaConfig(**{**GROUPED, **changes}))


def _mistral() -> nn.Module:
    import transformers as t

    return t.MistralForCausalLM(t.MistralConfig(**GROUPED, sliding_window=8))


def _qwen2() -> nn.Module:
    import transformers as t

    return t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED))


def _qwen3() -> nn.Module:
    import transformers as t

    return t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=16))


def _gemma2() -> nn.Module:
    import transformers as t

    return t.Gemma2ForCausalLM(t.Gemma2Config(**SLIDING, query_pre_attn_scalar=16))


def _gemma3() -> nn.Module:
    import transformers as t

    return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SLIDING, query_pre_attn_scalar=16))


def _opt() -> nn.Module:
    import transformers as t

    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return t.OPTForCausalLM(t.OPTConfig(**sizes, ffn_dim=96, word_embed_proj_dim=HIDDEN))


def _neox() -> nn.Module:
    import transformers as t

    return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SIZES))


def _phi() -> nn.Module:
    import transformers as t

    return t.PhiForCausalLM(t.PhiConfig(**SIZES))


def _mixtral() -> nn.Module:
    import transformers as t

    return t.MixtralForCausalLM(t.MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "llama": _llama,
    "llama-tied": lambda: _llama(tie_word_embeddings=True, attention_bias=True),
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "opt": _opt,
    "gpt-neox": _neox,
    "phi": _phi,
    "mixtral": _mixtral,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model with fixed random weights, float32, eval mode; biases and norms are random too."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def token_ids(samples: int = 3, seqlen: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (samples, seqlen), generator=torch.Generator().manual_seed(seed))


class LinearExperts(nn.Module):
    """A model that is not from transformers: its layers route every token to one of two nn.Linear experts.

    With `stuck`, all tokens go to expert 0.
    """

    class Layer(nn.Module):
        def __init__(self, stuck: bool) -> None:
            super().__init__()
            self.up = nn.ModuleList(nn.Linear(HIDDEN, 32) for _ in range(2))
            self.down = nn.ModuleList(nn.Linear(32, HIDDEN) for _ in range(2))
            self.stuck = stuck

        def forward(self, hidden_states: Tensor, scale: Tensor) -> tuple[Tensor, None]:
            flat = hidden_states.reshape(-1, HIDDEN)
            route = torch.zeros(len(flat), dtype=torch.long) if self.stuck else (flat[:, 0] > 0).long()
            out = flat.clone()
            for expert in range(2):
                chosen = flat[route == expert]
                if len(chosen):
                    out[route == expert] += self.down[expert](self.up[expert](chosen).relu()) * scale
            return out.reshape(hidden_states.shape), None

    def __init__(self, stuck: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.blocks = nn.ModuleList(self.Layer(stuck) for _ in range(2))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden_states=hidden, scale=torch.ones(()))[0]
        return hidden


def write_gguf(path: Path, *, tied: bool = False) -> Path:
    """A two-layer Llama with grouped heads in Q8_0 and float32, and a byte tokenizer."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    vocab, kv_heads, ffn = 288, 2, 96
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    letters = [b"t%d" % i for i in range(vocab - 259)]
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *[b"<0x%02X>" % i for i in range(256)], *letters])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(letters)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", 1 + 0.1 * values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(0.1 * values, kind), raw_dtype=kind)

    add("token_embd", vocab, HIDDEN)
    add("output_norm", HIDDEN)
    if not tied:
        add("output", vocab, HIDDEN)
    for i in range(2):
        for name, rows in (("attn_q", HIDDEN), ("attn_output", HIDDEN), ("ffn_gate", ffn), ("ffn_up", ffn)):
            add(f"blk.{i}.{name}", rows, HIDDEN)
        for name in ("attn_k", "attn_v"):
            add(f"blk.{i}.{name}", HIDDEN // 4 * kv_heads, HIDDEN)
        add(f"blk.{i}.ffn_down", HIDDEN, ffn)
        add(f"blk.{i}.attn_norm", HIDDEN)
        add(f"blk.{i}.ffn_norm", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
