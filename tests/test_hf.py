"""Packed models in transformers: what is saved comes back bit for bit, and what is damaged is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny
import torch
from architectures import ARCHITECTURES, build, token_ids
from helpers import random_packed
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, pipeline

import arbllm_kernels as arb
from arbllm_kernels.errors import FormatError, InputError
from arbllm_kernels.folder import GUARD
from arbllm_kernels.hf import ARBQuantizer, attach

CFG = arb.QuantConfig(block_size=32)


def packed(name: str = "llama") -> torch.nn.Module:
    """A tiny model of random packed weights, as quantize_model leaves it."""
    model = tiny.pack_linears(build(name))
    attach(model, CFG)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "folder"
    arb.save_folder(packed(), path, tiny.tokenizer())
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder whose files a test may change."""
    target = tmp_path / "copy"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(token_ids(1)).logits


def everything(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: t for file in sorted(path.glob("*.safetensors")) for name, t in load_file(file).items()}


def change(path: Path, **changes: object) -> None:
    """Replace (None: remove) tensors of a folder's only file; "__" in a name stands for a dot."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_save_pretrained_and_back(name: str, tmp_path: Path) -> None:
    model = packed(name)
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert arb.bits_per_weight(again) == arb.bits_per_weight(model)
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "n", max_shard_size="40KB")
    assert (tmp_path / "n" / "config.json").read_bytes() == (tmp_path / "m" / "config.json").read_bytes()
    first, second = (everything(tmp_path / name) for name in "mn")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_device_maps(folder: Path, device_map: object, dtype: torch.dtype) -> None:
    if device_map == "auto" and torch.cuda.is_available():
        pytest.skip("auto would choose the GPU")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
    layer = model.model.layers[1].mlp.up_proj
    assert layer.row_scale.dtype == torch.float16 and model.lm_head.weight.dtype == dtype
    assert torch.equal(layer.dequantize(), packed().model.layers[1].mlp.up_proj.dequantize())
    expected = logits(packed())
    tolerance = 0.0 if dtype == torch.float32 else 64 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(logits(model).float(), expected, rtol=0, atol=tolerance)


def test_format_version_2(tmp_path: Path) -> None:
    model = build("llama")
    for seed, (name, module) in enumerate(list(model.model.layers.named_modules())):
        if isinstance(module, torch.nn.Linear):
            weight = random_packed(*module.weight.shape, 32, shared=True, coded=True, ordered=True, seed=seed)
            model.model.layers.set_submodule(name, arb.ARBLinear(weight))
    attach(model, None)
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["format_version"] == 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for name, module in model.named_modules():
        if isinstance(module, arb.ARBLinear):
            parts = again.get_submodule(name).packed.tensors()
            assert all(torch.equal(parts[part], t) for part, t in module.packed.tensors().items())
            assert torch.equal(again.get_submodule(name).order, module.order)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt-neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bit_embeddings(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = packed(name)
    assert len(arb.round_embeddings(model)) == 2
    model.save_pretrained(tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
    head, embedding = again.get_output_embeddings(), again.get_input_embeddings()
    assert torch.equal(head.codes, model.get_output_embeddings().codes) and head.scale.dtype == dtype
    assert (head.codes is embedding.codes) == (name == "llama-tied")
    if dtype == torch.float32:
        assert torch.equal(logits(again), logits(model))
        again.save_pretrained(tmp_path / "n")
        first, second = (everything(tmp_path / name) for name in "mn")
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
        arb.convert(tmp_path / "m", tmp_path / "m.arb")
        assert torch.equal(logits(arb.load(tmp_path / "m.arb")[0]), logits(model))
    assert torch.isfinite(logits(again)).all()


def test_parts_on_disk_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="on disk"):
        AutoModelForCausalLM.from_pretrained(folder, device_map={"model": "cpu", "lm_head": "disk"})


def test_quantize_model_and_load_leave_a_model_that_saves_itself(tmp_path: Path) -> None:
    model = build("llama")
    arb.quantize_model(model, token_ids(2), CFG)
    model.save_pretrained(tmp_path / "a")
    quantization = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "arb" and quantization["quant_config"] == CFG.to_dict()
    arb.save(model, tmp_path / "m.arb")
    loaded, _ = arb.load(tmp_path / "m.arb")
    loaded.save_pretrained(tmp_path / "b")
    first, second = (everything(tmp_path / name) for name in "ab")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b")), logits(model))


def test_on_the_fly(tmp_path: Path) -> None:
    dense = build("llama")
    dense.save_pretrained(tmp_path / "dense")
    tiny.tokenizer().save_pretrained(tmp_path / "dense")
    ids = token_ids(2)
    expected = arb.quantize_model(build("llama"), ids, CFG)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=arb.ARBConfig(ids, block_size=32)
    )
    assert torch.equal(logits(model), logits(expected))
    model.save_pretrained(tmp_path / "packed")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "packed")), logits(expected))

    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i * 7 % 120}" for i in range(200)))
    config = arb.ARBConfig(text, samples=2, seqlen=24, seed=1, skip=["down_proj"], method="arb", block_size=64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    assert model.model.layers[0].mlp.up_proj.layout.method == "arb"
    assert isinstance(model.model.layers[0].mlp.down_proj, torch.nn.Linear)


def test_bad_requests_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="colour"):
        arb.ARBConfig(colour="red")
    with pytest.raises(InputError, match="method"):
        arb.ARBConfig(method="arb-y")
    with pytest.raises(InputError, match="quant_method"):
        arb.ARBConfig(quant_method="gptq")
    build("llama").save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="no tokenizer"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantization_config=arb.ARBConfig("text.txt"))


def test_generate_pipeline_compile(folder: Path) -> None:
    writer = pipeline("text-generation", str(folder))
    (out,) = writer("w1 w2 w3", max_new_tokens=6, do_sample=False)
    assert out["generated_text"].startswith("w1 w2 w3") and len(out["generated_text"].split()) > 3
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = writer.tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert writer.tokenizer.decode(written[0]).replace(" ", "") == out["generated_text"].replace(" ", "")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        tolerance = 64 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, rtol=0, atol=tolerance)


def test_the_base_model_loads_without_its_head(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        hidden, expected = (m(token_ids(1)).last_hidden_state for m in (model, packed().model))
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("saved", [False, True])
def test_dequantize_gives_a_dense_model(folder: Path, tmp_path: Path, saved: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(model)
    if saved:
        model.save_pretrained(tmp_path / "m")
    model.dequantize()
    assert isinstance(model.model.layers[0].mlp.up_proj, torch.nn.Linear) and not hasattr(model, "hf_quantizer")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__layers__0__mlp__up_proj__sign": None}, r"up_proj\.sign is missing"),
        ({"model__layers__0__mlp__up_proj__row_scale": None}, r"up_proj\.row_scale is missing"),
        ({"model__layers__0__mlp__up_proj__col_scale": None}, "col_scale2: must be there exactly"),
        ({"model__norm__weight": None}, r"missing, such as model\.norm\.weight"),
        ({"lm_head__weight": None}, r"missing, such as lm_head\.weight"),
        ({"model__other": torch.ones(2)}, r"no place for 1 stored tensors, such as model\.other"),
        ({"model__layers__1__mlp__up_proj__group": torch.zeros(4, dtype=torch.int32)}, r"up_proj\.group"),
        ({"model__layers__1__mlp__up_proj__sign": torch.zeros(96, 2)}, r"up_proj\.sign: torch\.float32"),
        ({"model__layers__1__mlp__up_proj__salient": torch.full((2,), -1, dtype=torch.int32)}, r"up_proj\.second"),
    ],
)
def test_damaged_folders_are_refused(copy: Path, changes: dict[str, torch.Tensor], message: str) -> None:
    change(copy, **changes)
    with pytest.raises(FormatError, match=message):
        AutoModelForCausalLM.from_pretrained(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version = 99"),
        ({"format_version": None}, "format_version"),
        ({"layouts": {}}, "describes no packed weight"),
        ({"layouts": {"lm_head": {}}}, "lm_head: layout must be"),
        ({"colour": 1}, "metadata must hold exactly"),
        ({"producer": "me"}, "producer = 'me', must be"),
        ({"producer": {"name": 1}}, "producer"),
    ],
)
def test_damaged_descriptions_are_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] |= changes
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        AutoModelForCausalLM.from_pretrained(copy)


def test_a_layout_must_fit_the_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    layouts = config["quantization_config"]["layouts"]
    layouts["model.layers.7.mlp.up_proj"] = layouts.pop("model.layers.1.mlp.up_proj")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"model\.layers\.7\.mlp\.up_proj"):
        AutoModelForCausalLM.from_pretrained(copy)


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)


def test_without_our_import_transformers_stops_and_with_it_loads(folder: Path) -> None:
    code = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except RuntimeError as error:
    print("stopped")
import arbllm_kernels
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""
    result = run(code, folder)
    assert result.stdout.split() == ["stopped", "LlamaForCausalLM"], result.stderr
    assert "size mismatch" in result.stderr and GUARD in result.stderr


def test_the_import_is_cheap_and_registers_when_transformers_comes() -> None:
    code = """
import sys, arbllm_kernels
assert "transformers" not in sys.modules
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
print(AUTO_QUANTIZER_MAPPING["arb"].__name__)
"""
    result = run(code)
    assert result.stdout == "ARBQuantizer\n", result.stderr


def test_a_model_of_another_kind_is_left_alone() -> None:
    model = torch.nn.Linear(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(model, CFG)
    assert not hasattr(model, "hf_quantizer")
    assert isinstance(packed().hf_quantizer, ARBQuantizer)
