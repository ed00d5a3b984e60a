"""The layer loop, in memory and streaming: same bits, right inputs, resumable, and nothing written for bad input."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, HIDDEN, LinearExperts, build, token_ids, write_gguf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from arbllm_kernels import layer_loop, pipeline
from arbllm_kernels.capture import capture
from arbllm_kernels.config import QuantConfig
from arbllm_kernels.container import load
from arbllm_kernels.errors import CalibrationError, InputError, UnsupportedModelError
from arbllm_kernels.hessian_hooks import HessianCollector
from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.models import find_layers, layer_linears
from arbllm_kernels.pipeline import bits_per_weight, quantize_checkpoint, quantize_model
from arbllm_kernels.progress import LinearRecord
from arbllm_kernels.stores import StreamStore


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


QUICK = QuantConfig(block_size=64, iters=1, max_salient=4, thresholds=3)


def _packed(model: nn.Module) -> dict[str, ARBLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ARBLinear)}


def _assert_same_packed(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = _packed(a), _packed(b)
    assert ours and ours.keys() == theirs.keys()
    for name in ours:
        for part, tensor in ours[name].packed.tensors().items():
            assert torch.equal(tensor, theirs[name].packed.tensors()[part]), f"{name}.{part}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_streaming_gives_the_same_bits_as_memory(name: str, tmp_path: Path) -> None:
    model, ids = build(name), token_ids()
    layers = find_layers(model)[1]
    model.save_pretrained(tmp_path / "dense")
    summary = quantize_checkpoint(
        tmp_path / "dense", tmp_path / "m.arb", QUICK, ids, embed_dtype="fp32", progress=False
    )
    if name == "mixtral":
        with pytest.warns(UserWarning, match=r"no nn\.Linear and stay as they are"):
            assert quantize_model(model, ids, QUICK) is model
        assert any("fused" in note for note in summary.notes)
    else:
        assert quantize_model(model, ids, QUICK) is model
        assert not any(type(module) is nn.Linear for module in layers.modules())
    streamed, tokenizer = load(tmp_path / "m.arb")
    assert tokenizer is None
    _assert_same_packed(model, streamed)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, streamed(ids).logits)
    assert summary.bits_per_weight == bits_per_weight(model)
    assert summary.file_bytes == (tmp_path / "m.arb").stat().st_size
    assert len(summary.linears) == len(_packed(model)) and all(0 < r.error < 1 for r in summary.linears)
    assert not (tmp_path / "m.arb.partial").exists()
    assert summary.linears[0].name.rsplit(".", 1)[-1] in summary.table()


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_captured_calls_reproduce_the_model(name: str) -> None:
    model, ids = build(name), token_ids()
    _, layers = find_layers(model)
    outputs: list[Tensor] = []
    with_hook = layers[-1].register_forward_hook(
        lambda _module, _args, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    for sample in ids:
        model(sample[None], use_cache=False)
    with_hook.remove()
    captured = capture(model, layers, ids)
    assert "forward" not in layers[0].__dict__  # nothing is left behind
    for s, expected in enumerate(outputs):
        hidden = captured.hidden[s]
        for index, layer in enumerate(layers):
            hidden = captured.calls[s][index].run(layer, hidden)
        assert torch.equal(hidden, expected)
    if name.startswith("gemma"):
        sliding, full = (call.kwargs["attention_mask"] for call in captured.calls[0])
        assert sliding is not None and (full is None or not torch.equal(sliding, full))


def test_layers_that_are_not_a_chain_are_refused() -> None:
    class Doubling(LinearExperts):
        def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
            hidden = self.embedding(input_ids)
            for block in self.blocks:
                hidden = 2 * block(hidden, torch.ones(()))[0]
            return hidden

    with pytest.raises(UnsupportedModelError, match="layer 1 does not simply receive"):
        quantize_model(Doubling(), token_ids(), QUICK)


@torch.no_grad()
def test_hessians_are_sums_over_tokens_and_shared_by_linears_with_one_input() -> None:
    model, ids = build("llama"), token_ids()
    layer = find_layers(model)[1][0]
    linears = layer_linears(layer, "0")
    inputs: list[Tensor] = []
    hook = linears["self_attn.v_proj"].register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with HessianCollector(linears) as collector:
        for sample in ids:
            collector.add_sample(lambda sample=sample: model(sample[None]))
    hook.remove()
    shared = {tuple(entry.names): entry for entry in collector.shared_inputs()}
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert set(shared) == {qkv, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)}
    x = torch.cat(inputs).reshape(-1, HIDDEN).double()
    assert shared[qkv].tokens == ids.numel()
    torch.testing.assert_close(shared[qkv].H.double(), 2 / len(ids) * x.T @ x, rtol=1e-5, atol=1e-4)


class Chain(nn.Module):
    """Two linears, of which the second may be used twice; counts how often its end is reached."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second, self.twice, self.ends = nn.Linear(4, 4), nn.Linear(4, 4), twice, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        x = self.second(x) if self.twice else x
        self.ends += 1
        return x


@pytest.mark.parametrize(("twice", "ends"), [(False, 1), (True, 3)])
@torch.no_grad()
def test_a_pass_is_left_at_the_last_input_only_where_nothing_can_follow(twice: bool, ends: int) -> None:
    layer, samples = Chain(twice), torch.randn(3, 5, 4)
    with HessianCollector({"first": layer.first, "second": layer.second}) as collector:
        for sample in samples:
            collector.add_sample(lambda sample=sample: layer(sample))
    assert layer.ends == ends
    first, second = collector.shared_inputs()
    hidden = layer.first(samples)
    inputs = torch.cat([hidden, layer.second(hidden)]) if twice else hidden
    inputs = inputs.reshape(-1, 4)
    torch.testing.assert_close(second.H, 2 / 3 * inputs.T @ inputs)
    assert (first.tokens, second.tokens) == (15, 30 if twice else 15)


def test_layers_see_quantized_predecessors_and_their_own_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    original = layer_loop.hessian_factor
    monkeypatch.setattr(
        layer_loop, "hessian_factor", lambda H, damp, **options: (seen.append(H), original(H, damp, **options))[1]
    )
    model, ids = build("llama"), token_ids()
    twin, layers = copy.deepcopy(model), find_layers(model)[1]
    quantize_model(model, ids, QUICK)
    assert len(seen) == 8  # q/k/v and gate/up share

    twin_layers = find_layers(twin)[1]
    for name, linear in layer_linears(twin_layers[0], "0").items():
        linear.weight.data = layers[0].get_submodule(name).packed.dequantize()
    with torch.no_grad(), HessianCollector(layer_linears(twin_layers[1], "1")) as collector:
        for sample in ids:
            collector.add_sample(lambda sample=sample: twin(sample[None]))
    for ours, direct in zip(seen[4:], collector.shared_inputs(), strict=True):
        assert torch.equal(ours, direct.H)


@pytest.mark.parametrize("m", [1, 256, 900])
def test_energy_of_weights(m: int) -> None:
    W, X = torch.randn(5, m), torch.randn(2 * m, m)
    H = X.T @ X
    torch.testing.assert_close(layer_loop._energy(W, H), ((W @ X.T) ** 2).sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["billm", "arb", "arb-x", "arb-rc"])
def test_every_method_runs_and_records_its_error(method: str) -> None:
    records: list[LinearRecord] = []
    model = build("llama")
    dense = {name: m.weight.detach().clone() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    cfg = QuantConfig(method=method, block_size=64, iters=1, max_salient=4, thresholds=3)
    quantize_model(model, token_ids(), cfg, records=records)
    assert [record.name for record in records] == list(_packed(model))
    for record in records:
        difference = dense[record.name] - _packed(model)[record.name].packed.dequantize()
        assert 0 < record.error < 1 and record.loss > 0 and float(difference.abs().max()) > 0
        assert (record.rows, record.cols) == tuple(difference.shape)


def test_half_precision_models_are_worked_on_in_float32_and_get_their_dtype_back(tmp_path: Path) -> None:
    ids = token_ids()
    build("llama-tied").to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert model.dtype == torch.bfloat16
    before = copy.deepcopy(model)
    quantize_model(model, ids, QUICK)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters() if p.is_floating_point())
    assert torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    quantize_checkpoint(tmp_path / "dense", tmp_path / "m.arb", QUICK, ids, progress=False)
    streamed, _ = load(tmp_path / "m.arb")
    _assert_same_packed(model, streamed)
    assert streamed.model.embed_tokens.weight.dtype == torch.bfloat16  # "auto": the checkpoint's own
    assert _packed(streamed)["model.layers.0.self_attn.q_proj"].bias.dtype == torch.bfloat16


def test_float32_is_stored_as_fp16_unless_it_does_not_fit(tmp_path: Path) -> None:
    model, ids = build("llama"), token_ids()
    model.save_pretrained(tmp_path / "dense")
    quantize_checkpoint(tmp_path / "dense", tmp_path / "m.arb", QUICK, ids, progress=False)
    assert load(tmp_path / "m.arb")[0].lm_head.weight.dtype == torch.float16
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(InputError, match=r"lm_head\.weight has values up to 1e\+06"):
        quantize_checkpoint(tmp_path / "large", tmp_path / "l.arb", QUICK, ids, progress=False)
    assert not (tmp_path / "l.arb").exists() and not (tmp_path / "l.arb.partial").exists()


def test_streaming_holds_one_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama").save_pretrained(tmp_path / "dense")
    held: list[list[int]] = []
    original = StreamStore.finished

    def finished(self: StreamStore, index: int) -> Any:
        held.append([i for i, layer in enumerate(self.layers) if not any(p.is_meta for p in layer.parameters())])
        outside = [name for name, p in self.model.named_parameters() if "layers" not in name and not p.is_meta]
        assert outside == []
        return original(self, index)

    monkeypatch.setattr(StreamStore, "finished", finished)
    quantize_checkpoint(tmp_path / "dense", tmp_path / "m.arb", QUICK, token_ids(), progress=False)
    assert held == [[0], [1]]


def test_gguf_is_streamed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    summary = quantize_checkpoint(
        path, tmp_path / "m.arb", QUICK, "self", samples=2, seqlen=16, seed=1, embed_dtype="fp32", progress=False
    )
    model, tokenizer = load(tmp_path / "m.arb")
    assert tokenizer.bos_token == "<s>" and len(_packed(model)) == 14
    assert any("dequantized" in note for note in summary.notes)
    assert any("its own calibration text" in note for note in summary.notes)


def test_experts_that_are_linears() -> None:
    model = quantize_model(LinearExperts(), token_ids(), QUICK)
    assert len(_packed(model)) == 8
    records: list[LinearRecord] = []
    with pytest.warns(UserWarning, match=r"4 linears saw no calibration token \(such as blocks\.0\.up\.1\)"):
        stuck = quantize_model(LinearExperts(stuck=True), token_ids(), QUICK, records=records)
    assert len(_packed(stuck)) == 8
    assert [r.name for r in records if r.tokens == 0] == [f"blocks.{i}.{n}.1" for i in range(2) for n in ("up", "down")]


def test_skipped_linears_stay_dense() -> None:
    model = build("llama")
    dense = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    quantize_model(model, token_ids(), QUICK, skip=[r"up_proj$", r"\.1\.self_attn\."])
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, dense)
    assert len(_packed(model)) == 14 - 2 - 4


def _with_nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    return model


def test_bad_models_are_refused_unchanged(tmp_path: Path) -> None:
    ids = token_ids()
    bad = _with_nan(build("llama"))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight .*NaN or Inf"):
        quantize_model(bad, ids, QUICK)
    assert not _packed(bad)
    bad.save_pretrained(tmp_path / "bad")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight .*NaN or Inf"):
        quantize_checkpoint(tmp_path / "bad", tmp_path / "m.arb", QUICK, ids, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
    done = quantize_model(build("llama"), ids, QUICK)
    with pytest.raises(InputError, match="quantized already"):
        quantize_model(done, ids, QUICK)
    with pytest.raises(UnsupportedModelError, match="ModuleList"):
        quantize_model(nn.Linear(2, 2), ids, QUICK)
    with pytest.raises(InputError, match="int64"):
        quantize_model(build("llama"), ids.float(), QUICK)
    with pytest.raises(InputError, match="holds no ARBLinear"):
        bits_per_weight(build("llama"))


def test_bad_outputs_are_refused_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama").save_pretrained(tmp_path / "dense")

    def run(out: Path, **more: Any) -> None:
        quantize_checkpoint(tmp_path / "dense", out, QUICK, more.pop("ids", token_ids()), progress=False, **more)

    with pytest.raises(InputError, match="is a folder"):
        run(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "no" / "m.arb")
    (tmp_path / "m.arb").write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        run(tmp_path / "m.arb")
    assert (tmp_path / "m.arb").read_bytes() == b"precious"
    run(tmp_path / "m.arb", overwrite=True)
    assert len(_packed(load(tmp_path / "m.arb")[0])) == 14
    new = tmp_path / "new.arb"
    with pytest.raises(InputError, match="embed_dtype = 'int4'"):
        run(new, embed_dtype="int4")
    with pytest.raises(CalibrationError, match="no such file"):
        run(new, ids=tmp_path / "brown.txt")
    (tmp_path / "brown.txt").write_text("some words")
    with pytest.raises(CalibrationError, match="no tokenizer"):
        run(new, ids=tmp_path / "brown.txt", seqlen=16)
    with pytest.raises(InputError, match="no unfinished run"):
        run(new, resume=True)
    monkeypatch.setattr(pipeline.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="not writable"):
        run(new)
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="GB of disk"):
        run(new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["brown.txt", "dense", "m.arb"]


KILLED = """
import os, signal, sys
from arbllm_kernels import workdir
from arbllm_kernels.pipeline import quantize_checkpoint
from arbllm_kernels.config import QuantConfig
calls, fsync = [], os.fsync
def fsync_or_die(fd):
    fsync(fd)
    calls.append(fd)
    if len(calls) == 4:  # calibration, state, layer 0, and in the middle of layer 1
        os.kill(os.getpid(), signal.SIGKILL)
workdir.os.fsync = fsync_or_die
cfg = QuantConfig(block_size=64, iters=1, max_salient=4, thresholds=3)
import torch
torch.set_num_threads(int(sys.argv[3]))
quantize_checkpoint(sys.argv[1], sys.argv[2], cfg, "self", samples=2, seqlen=16, progress=False)
"""


def test_a_killed_run_resumes_to_the_identical_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, out = tmp_path / "dense", tmp_path / "m.arb"
    build("llama").save_pretrained(dense)
    arguments = [sys.executable, "-c", KILLED, str(dense), str(out), str(torch.get_num_threads())]
    killed = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -9, killed.stderr
    partial = tmp_path / "m.arb.partial"
    left = {"calibration.safetensors", "layer_00000.safetensors", "layer_00001.safetensors.tmp", "state.json"}
    assert {path.name for path in partial.iterdir()} == left and not out.exists()

    def run(target: Path, cfg: QuantConfig = QUICK, **more: Any) -> None:
        options = {"samples": 2, "seqlen": 16, "progress": False, **more}
        quantize_checkpoint(dense, target, cfg, "self", **options)

    with pytest.raises(InputError, match="continue it with --resume or delete"):
        run(out)
    with pytest.raises(InputError, match=r"config\.iters: 1, now 2"):
        run(out, QuantConfig(block_size=64, iters=2, max_salient=4, thresholds=3), resume=True)
    with pytest.raises(InputError, match="seed 0, now self, 2 x 16 tokens, seed 5"):
        run(out, seed=5, resume=True)
    with pytest.raises(InputError, match=r"embed_dtype: torch\.float16, now torch\.float32"):
        run(out, embed_dtype="fp32", resume=True)

    solved: list[int] = []
    original = layer_loop._quantize_layer
    monkeypatch.setattr(layer_loop, "_quantize_layer", lambda s, i, *a: (solved.append(i), original(s, i, *a))[1])
    run(out, resume=True)
    assert solved == [1] and not partial.exists()
    run(tmp_path / "whole.arb")
    assert out.read_bytes() == (tmp_path / "whole.arb").read_bytes()


def test_damaged_work_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama").save_pretrained(tmp_path / "dense")
    out, partial = tmp_path / "m.arb", tmp_path / "m.arb.partial"

    def run(**more: Any) -> None:
        quantize_checkpoint(tmp_path / "dense", out, QUICK, token_ids(), progress=False, **more)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.container, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    layer = partial / "layer_00001.safetensors"
    whole = layer.read_bytes()
    layer.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"layer_00001\.safetensors: damaged .*delete this file"):
        run(resume=True)
    layer.unlink()
    run(resume=True)
    assert out.is_file() and not partial.exists()
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({})[:1])
    out.unlink()
    with pytest.raises(InputError, match=r"state\.json: damaged"):
        run(resume=True)
