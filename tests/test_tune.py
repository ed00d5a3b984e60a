"""Tuning scales: nearer to the dense model, the same codes and bytes, the same file after an interruption."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, build, token_ids
from helpers import random_packed
from tiny import llama, pack_linears, tokenizer
from torch import Tensor, nn

import arbllm_kernels as arb
from arbllm_kernels.errors import InputError, UnsupportedModelError
from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.tune import Factors, Settings, scaled, tune_model
from arbllm_kernels.tuning import tune_file

LEVELS = arb.QuantConfig(method="arb-levels", block_size=64, bits=3.5, iters=3, sweeps=1, damp=0.1)
FIXED = ("sign", "group", "second", "salient", "columns")
SETTINGS = Settings(epochs=3, rate=0.01)


def ids(samples: int = 6, length: int = 24, vocab: int = 120) -> Tensor:
    return torch.randint(0, vocab, (samples, length), generator=torch.Generator().manual_seed(1))


def pair(cfg: arb.QuantConfig = LEVELS, **options) -> tuple[nn.Module, nn.Module]:
    """(quantized, dense)"""
    dense = llama(**options)
    model = copy.deepcopy(dense)
    return arb.quantize_model(model, ids(), cfg, progress=False), dense


def divergence(model: nn.Module, dense: nn.Module, windows: Tensor) -> float:
    """The definition, over whole windows at once and the model's own logits."""
    with torch.no_grad():
        ours, theirs = (m(windows).logits.log_softmax(-1) for m in (model, dense))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def packed_parts(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ARBLinear)}
    return {name: {k: t.clone() for k, t in layer.packed.tensors().items()} for name, layer in layers.items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["arb-levels", "arb-rc", "arb"])
def test_the_loss_falls_and_codes_stay(method, bias):
    cfg = LEVELS if method == "arb-levels" else arb.QuantConfig(method=method, block_size=64, iters=2, max_salient=4)
    model, dense = pair(cfg, bias=bias)
    before, parts, bits = divergence(model, dense, ids()), packed_parts(model), arb.bits_per_weight(model)
    seen = tune_model(model, dense, ids(), SETTINGS, progress=False)
    assert divergence(model, dense, ids()) < 0.95 * before
    assert len(seen) == 3 and seen[-1] < seen[0]
    assert arb.bits_per_weight(model) == bits
    changed = 0
    for name, now in packed_parts(model).items():
        assert now.keys() == parts[name].keys()
        for part, t in now.items():
            assert t.dtype == parts[name][part].dtype and t.shape == parts[name][part].shape
            changed += not torch.equal(t, parts[name][part])
            assert part not in FIXED or torch.equal(t, parts[name][part]), f"{name}.{part}"
    assert changed
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_the_first_divergence_is_that_of_the_start():
    model, dense = pair()
    before = divergence(model, dense, ids(1))
    (seen,) = tune_model(model, dense, ids(1), Settings(epochs=1), progress=False)
    assert seen == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"col_scale": False, "mean": True},
        {"shared": True, "coded": True, "ordered": True},
        {"salient_order": 1},
        {"dtype": torch.float32},
    ],
)
def test_scaled_is_the_product_with_both_diagonals(kind):
    packed = random_packed(20, 100, 32, **kind)
    row, col = torch.rand(20) + 0.5, torch.rand(100) + 0.5
    wanted = packed.dequantize() * row[:, None]
    if packed.col_scale is not None:
        wanted *= col
    found = scaled(packed, row, col if packed.col_scale is not None else None)
    assert found.nbytes == packed.nbytes
    torch.testing.assert_close(found.dequantize(), wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))


def test_the_gradient_is_that_of_the_scaled_weights():
    """Hooks and packed products against autograd through dense weights."""
    layer = ARBLinear(random_packed(5, 70, 32, seed=3), torch.randn(5))
    factors = Factors.of(nn.Sequential(layer))
    x, dy = torch.randn(4, 70), torch.randn(4, 5)
    with factors.at_work():
        (layer(x) * dy).sum().backward()
    row, col = torch.ones(5, requires_grad=True), torch.ones(70, requires_grad=True)
    W = layer.dequantize() * row[:, None] * col
    ((x @ W.T + layer.bias) * dy).sum().backward()
    torch.testing.assert_close(factors.flat.grad, torch.cat([row.grad, col.grad]), rtol=1e-4, atol=1e-4)


def test_models_that_cannot_be_tuned_are_refused_unchanged():
    model, dense = pair()
    with pytest.raises(InputError, match="no ARBLinear"):
        tune_model(dense, dense, ids(), progress=False)
    with pytest.raises(InputError, match="quantized itself"):
        tune_model(model, model, ids(), progress=False)
    with pytest.raises(InputError, match="bfloat16"):
        tune_model(model, copy.deepcopy(dense).bfloat16(), ids(), progress=False)
    with pytest.raises(InputError, match="not the same model"):
        tune_model(model, llama(vocab=130), ids(), progress=False)
    with pytest.raises(UnsupportedModelError, match="no body and head"):
        tune_model(nn.Sequential(ARBLinear(random_packed(5, 5, 32))), dense, ids(), progress=False)
    with pytest.raises(InputError, match="token ids span"):
        tune_model(model, dense, ids(vocab=128) + 100, progress=False)
    for bad in ({"epochs": 0}, {"epochs": True}, {"rate": 0.0}, {"rate": float("nan")}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Settings(**bad)


class Stop(Exception):
    pass


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """(packed file, dense folder) with a tokenizer, embeddings in half precision."""
    model, dense = pair(tied=True)
    dense.save_pretrained(tmp_path / "dense")
    tokenizer().save_pretrained(tmp_path / "dense")
    model.get_input_embeddings().half()
    arb.save(model, tmp_path / "m.arb", tokenizer(), quant_config=LEVELS)
    return tmp_path / "m.arb", tmp_path / "dense"


def run(files: tuple[Path, Path], out: Path, **options):
    return tune_file(files[0], out, files[1], ids(), SETTINGS, progress=False, **options)


def test_a_file_is_tuned_resumably(files, tmp_path, monkeypatch):
    whole = run(files, tmp_path / "whole.arb")
    arb.verify(tmp_path / "whole.arb")
    assert (tmp_path / "whole.arb").stat().st_size == files[0].stat().st_size
    original, _ = arb.load(files[0])
    tuned, read = arb.load(tmp_path / "whole.arb")
    assert read is not None and whole.bits_per_weight == arb.bits_per_weight(original)
    assert tuned.config.quantization_config.info.quant_config == LEVELS
    for name, tensor in original.state_dict().items():
        if name.rpartition(".")[2] not in ("row_base", "col_scale"):
            assert torch.equal(tensor, tuned.state_dict()[name]), name

    from arbllm_kernels import workdir

    kept, writes = workdir.WorkFolder.write_tensors, []

    def stopping(self, name, tensors):
        kept(self, name, tensors)
        writes.append(int(tensors["step"]))
        if len(writes) == 7:
            raise Stop

    out = tmp_path / "resumed.arb"
    with monkeypatch.context() as patch:
        patch.setattr(workdir.WorkFolder, "write_tensors", stopping)
        with pytest.raises(Stop):
            run(files, out)
    assert not out.exists()
    with pytest.raises(InputError, match="left by an unfinished run"):
        run(files, out)
    with pytest.raises(InputError, match=r"settings.epochs: 3, now 4"):
        tune_file(files[0], out, files[1], ids(), Settings(epochs=4, rate=0.01), resume=True, progress=False)
    steps = []
    monkeypatch.setattr(
        workdir.WorkFolder, "write_tensors", lambda s, n, t: (steps.append(int(t["step"])), kept(s, n, t))
    )
    run(files, out, resume=True)
    assert steps == list(range(8, 19))
    assert out.read_bytes() == (tmp_path / "whole.arb").read_bytes()
    assert not (tmp_path / "resumed.arb.tuning").exists()


@pytest.mark.parametrize("damage", ["cut", "another run's", "not a number"])
def test_damaged_states_are_refused(files, tmp_path, monkeypatch, damage):
    from safetensors.torch import load_file, save_file

    from arbllm_kernels import workdir

    kept = workdir.WorkFolder.write_tensors

    def stopping(self, name, tensors):
        kept(self, name, tensors)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(workdir.WorkFolder, "write_tensors", stopping)
        with pytest.raises(Stop):
            run(files, tmp_path / "out.arb")
    path = tmp_path / "out.arb.tuning" / "step.safetensors"
    state = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "another run's":
        save_file(state | {"factors": state["factors"][1:].clone()}, path)
    else:
        save_file(state | {"first": state["first"] * float("nan")}, path)
    with pytest.raises(InputError, match=r"damaged|does not fit"):
        run(files, tmp_path / "out.arb", resume=True)


def test_outputs_are_checked_first(files, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        run(files, files[0])
    with pytest.raises(InputError, match=r"must end in \.arb"):
        run(files, tmp_path / "out.bin")
    with pytest.raises(InputError, match="no unfinished run"):
        run(files, tmp_path / "out.arb", resume=True)
    before = files[0].read_bytes()
    run(files, files[0], overwrite=True)
    assert files[0].read_bytes() != before and len(files[0].read_bytes()) == len(before)
    assert not list(tmp_path.glob("*.tuning"))


def test_damaged_and_foreign_files_are_refused(files, tmp_path):
    broken = tmp_path / "broken.arb"
    broken.write_bytes(files[0].read_bytes()[:5000])
    with pytest.raises(arb.FormatError):
        run((broken, files[1]), tmp_path / "out.arb")
    with pytest.raises(InputError, match="holds no ARBLinear"):
        arb.save(llama(), tmp_path / "plain.arb")
        run((tmp_path / "plain.arb", files[1]), tmp_path / "out2.arb")


def test_random_codes_are_tuned_too():
    """Nothing is assumed about how a weight was made."""
    dense = llama()
    model = pack_linears(copy.deepcopy(dense))
    before = divergence(model, dense, ids())
    tune_model(model, dense, ids(), dataclasses.replace(SETTINGS, epochs=6), progress=False)
    assert divergence(model, dense, ids()) < before


def test_embeddings_in_8_bits_stay_as_they_are(files, tmp_path):
    model, read = arb.load(files[0])
    arb.round_embeddings(model)
    arb.save(model, tmp_path / "small.arb", read)
    summary = run((tmp_path / "small.arb", files[1]), tmp_path / "out.arb")
    assert summary.divergence[-1] < summary.divergence[0]
    tuned, _ = arb.load(tmp_path / "out.arb")
    for name in ("model.embed_tokens.codes", "lm_head.codes", "lm_head.scale"):
        assert torch.equal(tuned.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_tuned(name):
    dense = build(name)
    windows = token_ids()
    model = arb.quantize_model(copy.deepcopy(dense), windows, LEVELS, progress=False)
    seen = tune_model(model, dense, windows, dataclasses.replace(SETTINGS, epochs=4), progress=False)
    assert seen[-1] < seen[0]
