"""`.arb` files and folders hold the same bytes, whatever the model came from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny
import torch
from architectures import token_ids, write_gguf
from safetensors.torch import load_file

import arbllm_kernels as arb
from arbllm_kernels.archive import read
from arbllm_kernels.container import save
from arbllm_kernels.errors import FormatError, InputError
from arbllm_kernels.evaluate import load_any
from arbllm_kernels.folder import GUARD, is_packed_folder, read_folder
from arbllm_kernels.header import TOKENIZER
from arbllm_kernels.hf import attach
from arbllm_kernels.pipeline import quantize_checkpoint

CFG = arb.QuantConfig(block_size=32)


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized model whose source was of either kind."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "gguf":
        source = write_gguf(path / "m.gguf")
    else:
        source = path / "dense"
        tiny.llama(tied=True, bias=True).save_pretrained(source)
        tiny.tokenizer().save_pretrained(source)
    quantize_checkpoint(source, path / "m.arb", CFG, token_ids(2))
    return path / "m.arb"


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("shard", [1 << 30, 20_000])
def test_there_and_back(file: Path, tmp_path: Path, shard: int) -> None:
    arb.convert(file, tmp_path / "folder", shard=shard)
    shards = sorted((tmp_path / "folder").glob("*.safetensors"))
    assert (len(shards) > 1) == (shard == 20_000)
    stored = {name: t for path in shards for name, t in load_file(path).items()}
    archive = read(file)
    assert {name: digest(t) for name, t in stored.items() if t.numel() or name in archive.table} == {
        name: value for name, value in archive.checksums.items() if not name.startswith(TOKENIZER)
    }
    assert GUARD in stored
    arb.convert(tmp_path / "folder", tmp_path / "again.arb")
    assert (tmp_path / "again.arb").read_bytes() == file.read_bytes()
    from_file, from_folder = (load_any(path)[0] for path in (file, tmp_path / "folder"))
    with torch.no_grad():
        assert torch.equal(from_file(token_ids(1)).logits, from_folder(token_ids(1)).logits)


def test_a_folder_transformers_saved_converts_too(file: Path, tmp_path: Path) -> None:
    model, tokenizer = arb.load(file)
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    arb.convert(tmp_path / "folder", tmp_path / "again.arb")
    again, before = read(tmp_path / "again.arb"), read(file)
    assert {n: c for n, c in again.checksums.items() if not n.startswith(TOKENIZER)} == {
        n: c for n, c in before.checksums.items() if not n.startswith(TOKENIZER)
    }
    assert again.header.quant_config == CFG


def test_shared_packed_modules_are_stored_once(tmp_path: Path) -> None:
    model = tiny.pack_linears(tiny.llama())
    model.model.layers[1].mlp.gate_proj = model.model.layers[0].mlp.gate_proj
    attach(model, CFG)
    arb.save_folder(model, tmp_path / "folder")
    assert not any("layers.1.mlp.gate_proj" in name for name in load_file(tmp_path / "folder" / "model.safetensors"))
    loaded, _ = load_any(tmp_path / "folder")
    assert loaded.model.layers[1].mlp.gate_proj is loaded.model.layers[0].mlp.gate_proj
    model.save_pretrained(tmp_path / "again")
    arb.convert(tmp_path / "again", tmp_path / "again.arb")
    with torch.no_grad():
        for other in (loaded, arb.load(tmp_path / "again.arb")[0]):
            assert torch.equal(other(token_ids(1)).logits, model(token_ids(1)).logits)


def test_the_model_card_says_what_matters(file: Path, tmp_path: Path) -> None:
    arb.convert(file, tmp_path / "some-model", perplexity={"WikiText-2": 23.456}, base_model="org/dense")
    card = (tmp_path / "some-model" / "README.md").read_text()
    bits = arb.bits_per_weight(arb.load(file)[0])
    for text in ("`import arbllm_kernels` first", f"{bits:.3f}", "ARB-RC + CGB", "WikiText-2 | 23.46", "org/dense"):
        assert text in card
    header = card.split("---")[1]
    assert "base_model: org/dense" in header and "library_name: transformers" in header
    arb.convert(file, tmp_path / "plain")
    assert "perplexity" not in (tmp_path / "plain" / "README.md").read_text()


def test_what_cannot_be_converted_is_left_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note.txt").write_text("mine")
    dense = tmp_path / "dense"
    tiny.llama().save_pretrained(dense)
    save(tiny.llama(), tmp_path / "dense.arb")
    for source, target, message in [
        (file, tmp_path / "used", "not empty"),
        (file, tmp_path / "no" / "folder", "create it first"),
        (tmp_path / "nothing", tmp_path / "out.arb", "no such file"),
        (dense, tmp_path / "out.arb", "no quantization_config of this package"),
        (tmp_path / "dense.arb", tmp_path / "out", "no packed weight"),
        (dense, tmp_path / "out.bin", "must end in .arb"),
    ]:
        with pytest.raises(InputError, match=message):
            arb.convert(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "dense.arb", "used"]
    assert not is_packed_folder(dense) and not is_packed_folder(tmp_path / "nothing")


def test_damaged_sources_leave_nothing_behind(file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    (tmp_path / "broken.arb").write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        arb.convert(tmp_path / "broken.arb", tmp_path / "out")
    arb.convert(file, tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"no place|something else"):
        arb.convert(tmp_path / "folder", tmp_path / "out.arb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.arb", "folder"]
    (tmp_path / "folder" / "config.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        read_folder(tmp_path / "folder")
