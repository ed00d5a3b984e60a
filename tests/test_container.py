"""container.py: what is saved comes back exactly, mapped, deterministic and atomic; sizes add up; golden bytes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import random_packed
from safetensors import safe_open
from tiny import llama, pack_linears, tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from arbllm_kernels import archive, container
from arbllm_kernels.block import Block
from arbllm_kernels.config import QuantConfig
from arbllm_kernels.container import Header, inspect, load, read_header, read_packed, save, verify, write
from arbllm_kernels.errors import FormatError, InputError
from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.packed import Layout, PackedWeight

FORMAT_TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
IDS = torch.arange(24)[None] * 5 % 128


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_comes_back_exactly(tmp_path, tied, bias):
    model = pack_linears(llama(tied=tied, bias=bias))
    save(model, tmp_path / "m.arb")
    verify(tmp_path / "m.arb")
    loaded, none = load(tmp_path / "m.arb")
    assert none is None and not loaded.training
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in mine.items())
    generated = loaded.generate(IDS[:, :4], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(generated, model.generate(IDS[:, :4], max_new_tokens=4, do_sample=False, pad_token_id=0))


SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES = {
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 16},
    "gpt_neox": {},
    "phi": {},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen2_moe": {
        "num_key_value_heads": 4,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 5632,
    },
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_come_back_exactly(tmp_path, kind, tied):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **ARCHITECTURES[kind], tie_word_embeddings=tied)
    model = pack_linears(AutoModelForCausalLM.from_config(config).eval())
    save(model, tmp_path / "m.arb")
    verify(tmp_path / "m.arb")
    loaded, _ = load(tmp_path / "m.arb")
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


def test_tied_tensors_are_stored_once(tmp_path):
    save(pack_linears(llama(tied=True)), tmp_path / "m.arb")
    opened = archive.read(tmp_path / "m.arb")
    assert opened.header.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in opened.table
    assert opened.header.embeddings == ("model.embed_tokens.weight",)


def test_tensors_and_modules_shared_by_hand_stay_shared(tmp_path):
    model = pack_linears(llama())
    first, second = model.model.layers
    second.input_layernorm.weight = first.input_layernorm.weight
    second.mlp.up_proj = first.mlp.up_proj
    save(model, tmp_path / "m.arb")
    ties = read_header(tmp_path / "m.arb").ties
    assert ties["model.layers.1.input_layernorm.weight"] == "model.layers.0.input_layernorm.weight"
    assert ties["model.layers.1.mlp.up_proj"] == "model.layers.0.mlp.up_proj"
    loaded, _ = load(tmp_path / "m.arb")
    first, second = loaded.model.layers
    assert second.input_layernorm.weight is first.input_layernorm.weight
    assert second.mlp.up_proj is first.mlp.up_proj
    assert torch.equal(logits(loaded), logits(model))


def test_a_packed_head_of_a_tied_model_does_not_disturb_the_embedding(tmp_path):
    model = pack_linears(llama(tied=True))
    model.lm_head = ARBLinear(random_packed(128, 64, 32), None)
    save(model, tmp_path / "m.arb")
    loaded, _ = load(tmp_path / "m.arb")
    assert isinstance(loaded.lm_head, ARBLinear)
    assert torch.equal(logits(loaded), logits(model))


def test_equal_models_give_equal_bytes_also_after_loading(tmp_path):
    model, words = pack_linears(llama(tied=True, bias=True)), tokenizer()
    for name in ("a.arb", "b.arb"):
        save(model, tmp_path / name, words, quant_config=QuantConfig(), extra={"note": [1, 2.5, None]})
    loaded, read_words = load(tmp_path / "a.arb")
    header = read_header(tmp_path / "a.arb")
    save(loaded, tmp_path / "c.arb", read_words, quant_config=header.quant_config, extra=header.extra)
    first = (tmp_path / "a.arb").read_bytes()
    assert first == (tmp_path / "b.arb").read_bytes()
    assert first == (tmp_path / "c.arb").read_bytes()


def test_saving_over_the_file_a_model_is_mapped_from(tmp_path):
    save(pack_linears(llama()), tmp_path / "m.arb")
    before = (tmp_path / "m.arb").read_bytes()
    loaded, _ = load(tmp_path / "m.arb")
    expected = logits(loaded)
    save(loaded, tmp_path / "m.arb")
    assert (tmp_path / "m.arb").read_bytes() == before
    assert torch.equal(logits(loaded), expected)


def test_tokenizer_and_configs_are_inside(tmp_path):
    model, words = pack_linears(llama()), tokenizer()
    model.generation_config.top_k = 7
    save(model, tmp_path / "m.arb", words, quant_config=QuantConfig(method="arb-x"), extra={"seed": 3})
    loaded, read_words = load(tmp_path / "m.arb")
    assert read_words("w1 w5 nothing").input_ids == words("w1 w5 nothing").input_ids == [1, 5, 127]
    messages = [{"role": "user", "content": "w7"}]
    assert read_words.apply_chat_template(messages, tokenize=False) == "w7 "
    assert loaded.generation_config.top_k == 7
    header = read_header(tmp_path / "m.arb")
    assert header.quant_config == QuantConfig(method="arb-x") and header.extra == {"seed": 3}
    assert str(tmp_path) not in (tmp_path / "m.arb").read_bytes().decode("latin-1")


def test_dtype_converts_dense_tensors_but_not_scales(tmp_path):
    save(pack_linears(llama(bias=True)), tmp_path / "m.arb")
    loaded, _ = load(tmp_path / "m.arb", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.layers[0].mlp.up_proj.packed.row_scale.dtype == torch.float16
    assert loaded.config.dtype == torch.bfloat16
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    kept, _ = load(tmp_path / "m.arb")
    assert {p.dtype for p in kept.parameters()} == {torch.float32}


def test_a_bfloat16_model_keeps_its_dtype(tmp_path):
    model = pack_linears(llama(dtype=torch.bfloat16))
    save(model, tmp_path / "m.arb")
    loaded, _ = load(tmp_path / "m.arb")
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_loading_maps_the_file_and_copies_nothing(tmp_path):
    save(pack_linears(llama()), tmp_path / "m.arb")
    loaded, _ = load(tmp_path / "m.arb")
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("/m.arb"):
            ranges.append([int(x, 16) for x in line.split()[0].split("-")])
    tensors = dict(loaded.state_dict())
    assert len(tensors) > 100
    for name, t in tensors.items():
        inside = any(low <= t.data_ptr() and t.data_ptr() + t.nbytes <= high for low, high in ranges)
        assert inside or t.numel() == 0, f"{name} is a copy"


def test_changing_a_loaded_tensor_leaves_the_file_alone(tmp_path):
    save(pack_linears(llama()), tmp_path / "m.arb")
    before = (tmp_path / "m.arb").read_bytes()
    loaded, _ = load(tmp_path / "m.arb")
    with torch.no_grad():
        loaded.lm_head.weight.add_(1)
    assert (tmp_path / "m.arb").read_bytes() == before


def test_loading_leaves_the_random_state_and_other_models_alone(tmp_path):
    save(pack_linears(llama()), tmp_path / "m.arb")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(tmp_path / "m.arb")
    assert torch.equal(torch.rand(3), expected)
    assert not nn.Linear(2, 2).weight.is_meta


def test_read_packed_returns_one_weight(tmp_path):
    model = pack_linears(llama())
    save(model, tmp_path / "m.arb")
    name = "model.layers.1.self_attn.q_proj"
    packed = read_packed(tmp_path / "m.arb", name)
    assert torch.equal(packed.dequantize(), model.get_submodule(name).packed.dequantize())
    with pytest.raises(InputError, match=r"holds no packed weight 'lm_head'"):
        read_packed(tmp_path / "m.arb", "lm_head")


def test_any_safetensors_reader_can_list_the_file(tmp_path):
    model = pack_linears(llama())
    save(model, tmp_path / "m.arb")
    with safe_open(tmp_path / "m.arb", framework="pt") as file:
        assert file.metadata()["format"] == "arb"
        assert torch.equal(file.get_tensor("lm_head.weight"), model.lm_head.weight)


def test_the_parts_of_the_report_sum_to_the_file(tmp_path):
    model = pack_linears(llama(tied=True, bias=True))
    save(model, tmp_path / "m.arb", tokenizer())
    found = inspect(tmp_path / "m.arb")
    assert found.nbytes == sum(found.parts.values()) == (tmp_path / "m.arb").stat().st_size
    assert all(size > 0 for size in found.parts.values())
    layers = {n: m.packed for n, m in model.named_modules() if isinstance(m, ARBLinear)}
    assert found.signs == sum(p.sign.nbytes + p.second.nbytes for p in layers.values())
    assert found.signs + found.bitmaps + found.scales == sum(p.nbytes for p in layers.values())
    assert found.embeddings == 128 * 64 * 4
    assert {w.name for w in found.weights} == set(layers)
    for w in found.weights:
        p = layers[w.name]
        assert (w.shape, w.salient_columns, w.method) == (p.shape, p.salient_columns, "arb-rc")
        assert w.bits_per_weight == p.bits_per_weight and w.nominal_bits_per_weight == p.nominal_bits_per_weight
    assert found.bits_per_weight == 8 * sum(p.nbytes for p in layers.values()) / sum(
        p.layout.rows * p.layout.cols for p in layers.values()
    )
    assert 1 < found.nominal_bits_per_weight < found.bits_per_weight
    assert verify(tmp_path / "m.arb") == found


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    model = pack_linears(llama())
    save(model, tmp_path / "m.arb")
    before = (tmp_path / "m.arb").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(pack_linears(llama(bias=True)), tmp_path / "m.arb")
    assert (tmp_path / "m.arb").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.arb"]


def test_an_interrupted_save_leaves_the_old_file_and_no_other(tmp_path):
    model = pack_linears(llama())
    save(model, tmp_path / "m.arb")
    before = (tmp_path / "m.arb").read_bytes()

    class Interrupted(dict):
        def __getitem__(self, name):
            if os.path.exists(f"{tmp_path}/m.arb.tmp-{os.getpid()}") and name.endswith("sign"):
                raise KeyboardInterrupt
            return super().__getitem__(name)

    opened = archive.read(tmp_path / "m.arb")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m.arb", Interrupted(opened.tensors()), opened.header)
    assert (tmp_path / "m.arb").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.arb"]


def test_save_refuses_a_model_without_config(tmp_path):
    with pytest.raises(InputError, match="Sequential has no transformers config"):
        save(nn.Sequential(), tmp_path / "m.arb")
    assert not list(tmp_path.iterdir())


def test_save_refuses_a_place_that_is_no_file(tmp_path):
    model = pack_linears(llama())
    with pytest.raises(InputError, match=re.escape(f"there is no folder {tmp_path / 'nodir'}; create it first")):
        save(model, tmp_path / "nodir" / "a.arb")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path} is a folder: give the name of a file")):
        save(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_save_refuses_the_name_of_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match="tokenizer is str 'llama', must be a transformers tokenizer"):
        save(pack_linears(llama()), tmp_path / "m.arb", tokenizer="llama")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, torch.float64])
def test_load_refuses_other_dtypes(tmp_path, dtype):
    with pytest.raises(InputError, match=r"dtype = .*: must be torch\.float32, torch\.bfloat16 or torch\.float16"):
        load(tmp_path / "m.arb", dtype=dtype)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")),
        "nowhere",
    ],
)
def test_load_refuses_a_device_that_is_not_there(tmp_path, device):
    with pytest.raises(InputError, match=f"device = '{device}' is not usable here: .*; use device='cpu'"):
        load(tmp_path / "m.arb", device=device)


def test_save_refuses_non_finite_weights_by_name(tmp_path):
    model = pack_linears(llama())
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(InputError, match=r"model\.norm\.weight: holds NaN or Inf"):
        save(model, tmp_path / "m.arb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_is_finite_agrees_with_torch(dtype):
    info = torch.finfo(dtype)
    for value in (
        0.0,
        -0.0,
        info.max,
        info.min,
        info.tiny,
        info.smallest_normal / 2,
        -1.0,
        math.inf,
        -math.inf,
        math.nan,
    ):
        t = torch.zeros(3, 5, dtype=dtype)
        t[2, 3] = value
        assert archive.is_finite(t) == bool(torch.isfinite(t).all()), value
        assert archive.is_finite(t.T) == bool(torch.isfinite(t).all())
    assert archive.is_finite(torch.empty(0, dtype=dtype))


PACKED = {f"w.{part}": t for part, t in random_packed(4, 8, 4).tensors().items()}
LAYOUT = {"w": random_packed(4, 8, 4).layout}


@pytest.mark.parametrize(
    ("tensors", "fields", "files", "message"),
    [
        ({"a b": torch.ones(1)}, {}, {}, "printable ASCII"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, {}, {}, "a: a cpu tensor of torch.complex64"),
        ({"a": torch.ones(1, device="meta")}, {}, {}, "a: a meta tensor"),
        ({"a": torch.ones([1] * 9)}, {}, {}, "cannot be stored"),
        ({}, {}, {"../x": b""}, "tokenizer file name '../x'"),
        ({}, {"embeddings": ("a",)}, {}, r"not among those to write: \['a'\]"),
        ({}, {"ties": {"b": "a"}}, {}, r"not among those to write: \['a'\]"),
        ({}, {"extra": float("nan")}, {}, "cannot be written as JSON"),
        ({}, {"extra": object()}, {}, "cannot be written as JSON"),
        ({}, {"layouts": LAYOUT}, {}, "packed weight w: parts .*'sign'.* are not among"),
    ],
)
def test_write_refuses_what_the_format_cannot_hold(tmp_path, tensors, fields, files, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "m.arb", tensors, Header(**{"config": {}, "layouts": {}, **fields}), files)
    assert not list(tmp_path.iterdir())


def test_write_refuses_a_broken_packed_weight(tmp_path):
    broken = {**PACKED, "w.sign": PACKED["w.sign"] | -1}
    with pytest.raises(FormatError, match=r"w\.sign: padding bits"):
        write(tmp_path / "m.arb", broken, Header(config={}, layouts=LAYOUT))


def test_write_takes_every_dtype_and_odd_shapes(tmp_path):
    kinds = [torch.float64, torch.int64, torch.float32, torch.int32, torch.float16, torch.bfloat16]
    kinds += [torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = {f"t.{kind}".replace("torch.", ""): torch.tensor([1, 0, 1]).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(3, 0), "view": torch.arange(6.0).view(2, 3).T}
    write(tmp_path / "m.arb", {**tensors, **PACKED}, Header(config={}, layouts=LAYOUT))
    verify(tmp_path / "m.arb")
    opened = archive.read(tmp_path / "m.arb")
    for name, t in opened.tensors().items():
        original = {**tensors, **PACKED}[name]
        assert t.dtype == original.dtype and torch.equal(t, original), name
    assert all(entry.begin % entry.dtype.itemsize == 0 for entry in opened.table.values())
    assert all(opened.table[f"w.{plane}"].begin % 8 == 0 for plane in ("sign", "group", "second", "salient"))


# The worked example of docs/format.md.


def example() -> PackedWeight:
    """The 2 x 6 matrix of docs/format.md; scales are given in column order here."""
    salient = torch.tensor([0, 0, 1, 0, 0, 1]).bool()
    group = torch.tensor([[0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 0]])
    sign = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1]]).bool()
    second = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
    row_scale = torch.tensor(
        [[[4, 1, 2, 0.5, 3, 1.5], [8, 2, 4, 1, 6, 3]], [[2, 0.5, 1, 0.25, 1.5, 0.75], [4, 1, 2, 0.5, 3, 1.5]]]
    ).half()
    col_scale = torch.tensor([[0.5, 2, 1, 1, 0.5, 1], [1, 0.5, 2, 1, 2, 1]]).half()
    col_scale2 = torch.tensor([[0, 0, 1, 0, 0, 2], [0, 0, 0.5, 0, 0, 1]]).half()
    blocks = [
        Block(
            salient=salient[s],
            group=group[:, s],
            sign=sign[:, s],
            second=second[:, s],
            row_scale=row_scale[:, b],
            mean=None,
            col_scale=col_scale[:, s],
            col_scale2=col_scale2[:, s],
            salient_groups=2,
        )
        for b, s in enumerate((slice(0, 4), slice(4, 6)))
    ]
    layout = Layout(rows=2, cols=6, block_size=4, groups=2, salient_groups=2, salient_order=2, exponent=-2)
    return PackedWeight.from_blocks(blocks, layout)


def write_one(path: Path, packed: PackedWeight) -> None:
    tensors = {f"w.{part}": t for part, t in packed.tensors().items()}
    write(path, tensors, Header(config={"model_type": "example"}, layouts={"w": packed.layout}))


def test_golden_bytes_of_the_worked_example(tmp_path):
    write_one(tmp_path / "m.arb", example())
    content = (tmp_path / "m.arb").read_bytes()
    digest = "c1cf75cca18d4bcc49b65742bf72337600919eb91bee42c0d7f536aea57e30a4"
    assert (len(content), hashlib.sha256(content).hexdigest()) == (1648, digest)
    assert "has 1648 bytes" in FORMAT_TEXT and digest in FORMAT_TEXT
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    documented = dict(re.findall(r"^\| `(\w+)` \| `([0-9a-f ]+)` \|$", FORMAT_TEXT, re.MULTILINE))
    assert set(documented) == set(example().tensors())
    for part, text in documented.items():
        begin, end = table[f"w.{part}"]["data_offsets"]
        assert content[start + begin : start + end].hex() == text.replace(" ", ""), part


def test_the_matrix_of_the_worked_example():
    rows = re.search(r"The whole matrix:\n\n```\n(.*?)```", FORMAT_TEXT, re.DOTALL).group(1).strip().splitlines()
    assert example().dequantize().tolist() == [[float(x) for x in row.split()] for row in rows]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("mean", "col_scale"), [(True, False), (False, True), (True, True), (False, False)])
def test_the_numpy_reader_of_the_text_agrees(tmp_path, groups, order, mean, col_scale):
    code = re.search(r"```python\n(.*?)```", FORMAT_TEXT, re.DOTALL).group(1)
    scope: dict = {}
    exec(code, scope)
    for salient_groups in {1, groups}:
        packed = random_packed(
            5, 75, 32, groups=groups, salient_groups=salient_groups, salient_order=order, mean=mean,
            col_scale=col_scale, exponent=-3, seed=groups,
        )  # fmt: skip
        write_one(tmp_path / "m.arb", packed)
        dense = scope["read_arb"](str(tmp_path / "m.arb"), "w")
        assert torch.equal(torch.from_numpy(dense), packed.dequantize())
    newer = {"shared": col_scale, "coded": not mean, "ordered": groups != 2}
    packed = random_packed(5, 75, 32, groups=groups, salient_order=order, mean=mean, col_scale=col_scale, **newer)
    write_one(tmp_path / "m.arb", packed)
    dense = scope["read_arb"](str(tmp_path / "m.arb"), "w")
    assert torch.equal(torch.from_numpy(dense), packed.dequantize())


@pytest.mark.parametrize("newer", [{}, {"shared": True}, {"coded": True}, {"ordered": True}])
def test_a_file_is_written_in_the_oldest_version_that_holds_it(tmp_path, newer):
    packed = random_packed(4, 40, 16, **newer)
    write_one(tmp_path / "m.arb", packed)
    content = (tmp_path / "m.arb").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["version"] == ("2" if newer else "1")
    verify(tmp_path / "m.arb")
    read = container.read_packed(tmp_path / "m.arb", "w")
    assert read.layout == packed.layout
    assert all(torch.equal(t, getattr(read, part)) for part, t in packed.tensors().items())


def test_container_lists_its_public_names():
    assert all(hasattr(container, name) for name in container.__all__)
