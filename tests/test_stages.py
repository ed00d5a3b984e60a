"""Sequential quantization and the correction: who sees what, and that a resumed run does not forget the dense model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LinearExperts, build, token_ids
from torch import Tensor, nn

from arbllm_kernels import layer_loop
from arbllm_kernels.capture import capture
from arbllm_kernels.config import QuantConfig
from arbllm_kernels.linear import ARBLinear
from arbllm_kernels.models import find_layers, layer_linears
from arbllm_kernels.pipeline import quantize_checkpoint, quantize_model
from arbllm_kernels.stages import DenseModel, stages

CFG = QuantConfig(
    method="arb-levels", block_size=64, iters=3, sweeps=1, bits=None, sequential=True, correction=1.0, damp=0.1
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first_stages(model: nn.Module) -> list[list[str]]:
    layers = find_layers(model)[1]
    with torch.no_grad():
        captured = capture(model, layers, token_ids())
        call, hidden = captured.calls[0][0], captured.hidden[0]
        return [list(part) for part in stages(layer_linears(layers[0], "0"), lambda: call.run(layers[0], hidden))]


def test_linears_with_one_input_are_a_stage() -> None:
    names = [[name.rsplit(".", 1)[-1] for name in part] for part in first_stages(build("llama"))]
    assert names == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


@pytest.mark.parametrize("stuck", [False, True])
def test_experts_are_a_stage_whether_they_are_reached_or_not(stuck: bool) -> None:
    assert first_stages(LinearExperts(stuck=stuck)) == [["up.0", "up.1"], ["down.0", "down.1"]]


def test_later_stages_see_the_quantized_weights_of_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    original = layer_loop.hessian_factor
    monkeypatch.setattr(
        layer_loop, "hessian_factor", lambda H, damp, **options: (seen.append(H), original(H, damp, **options))[1]
    )
    model, ids = build("llama"), token_ids()
    twin, ours = copy.deepcopy(model), find_layers(model)[1][0]
    quantize_model(model, ids, CFG)
    layer = find_layers(twin)[1][0]
    for name, linear in layer_linears(layer, "0").items():
        if not name.endswith("down_proj"):
            linear.weight.data = ours.get_submodule(name).packed.dequantize()
    inputs: list[Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with torch.no_grad():
        for sample in ids:
            twin(sample[None])
    handle.remove()
    x = torch.cat([t.reshape(-1, t.shape[-1]) for t in inputs])
    assert len(seen) == 8
    torch.testing.assert_close(seen[3], x.T @ x * (2 / len(ids)))


def test_the_dense_model_runs_along() -> None:
    model, ids = build("llama"), token_ids()
    layers = find_layers(model)[1]
    with torch.no_grad():
        captured = capture(model, layers, ids)
        dense = DenseModel(captured)
        captured.hidden[:] = [torch.zeros_like(hidden) for hidden in captured.hidden]  # as if the other went astray
        recorded: list[Tensor] = []
        handle = layers[1].mlp.down_proj.register_forward_pre_hook(lambda _m, args: recorded.append(args[0][0].clone()))
        for index, layer in enumerate(layers):
            dense.advance(layer, [calls[index] for calls in captured.calls], layer_linears(layer, str(index)))
        recorded.clear()
        for sample in ids:
            model(sample[None])
        handle.remove()
    for inputs, x in zip(dense.inputs, recorded, strict=True):
        torch.testing.assert_close(inputs["mlp.down_proj"], x)
        assert inputs["mlp.gate_proj"] is inputs["mlp.up_proj"] or torch.equal(
            inputs["mlp.gate_proj"], inputs["mlp.up_proj"]
        )


def test_correction_brings_the_outputs_nearer_to_the_dense_models() -> None:
    ids = token_ids()
    dense = build("llama")
    with torch.no_grad():
        wanted = dense(ids).logits

    def distance(**changes: Any) -> float:
        model = quantize_model(build("llama"), ids, dataclasses.replace(CFG, **changes))
        for name, module in list(model.named_modules()):
            if isinstance(module, ARBLinear):
                model.set_submodule(name, linear := nn.Linear(module.in_features, module.out_features, bias=False))
                linear.weight.data = module.packed.dequantize()
        with torch.no_grad():
            return float((model(ids).logits - wanted).square().mean())

    assert distance() < 0.9 * distance(correction=0.0)


def test_a_resumed_run_knows_the_dense_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama").save_pretrained(tmp_path / "dense")
    ids = token_ids()
    original = layer_loop._quantize_layer

    def run(target: Path, resume: bool = False) -> bytes:
        quantize_checkpoint(tmp_path / "dense", target, CFG, ids, resume=resume, progress=False)
        return target.read_bytes()

    def stop_at_the_second(store: Any, index: int, *rest: Any) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return original(store, index, *rest)

    monkeypatch.setattr(layer_loop, "_quantize_layer", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.arb")
    monkeypatch.setattr(layer_loop, "_quantize_layer", original)
    assert run(tmp_path / "a.arb", resume=True) == run(tmp_path / "b.arb")
