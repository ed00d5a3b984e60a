"""quantize_model with the Triton solver: the linears of a layer share their launches and come out as one by one."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import pytest
import torch
from tiny import llama

from arbllm_kernels import ARBLinear, QuantConfig, quantize_model
from arbllm_kernels.methods import solve
from arbllm_kernels.triton_kernels.launch import launched_by


def quantized(model, cfg):
    """(packed weights and records by name, launches by kernel)."""
    model, records, launches = copy.deepcopy(model), [], Counter()

    def count(kernel, grid, *args, **options):
        launches[kernel.__name__] += 1
        kernel[grid](*args, **options)

    with launched_by(count):
        quantize_model(model, torch.arange(48).reshape(3, 16), cfg, records=records)
    packed = {name: module.packed for name, module in model.named_modules() if isinstance(module, ARBLinear)}
    return packed, [record.name for record in records], launches


# all seven, of which down has a second block; in stages q, k and v; o; gate and up; down in two blocks
@pytest.mark.parametrize(("method", "sequential", "blocks"), [("arb-rc", False, 2), ("billm", True, 5)])
def test_the_linears_of_a_layer_share_their_launches(method, sequential, blocks, monkeypatch):
    cfg = QuantConfig(
        method=method, block_size=64, max_salient=3, thresholds=3, iters=1, sequential=sequential, damp=0.1
    )
    model = llama()
    del model.model.layers[1]
    plain, order, none = quantized(model, cfg)
    assert not none, "on the CPU nothing is launched"
    monkeypatch.setattr(sys.modules[solve.__module__], "solver_is_triton", lambda backend, device, block: True)
    found, same_order, launches = quantized(model, cfg)
    assert launches["rounding_pass"] == blocks
    assert same_order == order and list(found) == list(plain) and len(found) == 7
    for name, pw in found.items():
        assert pw.layout == plain[name].layout
        assert torch.equal(pw.salient, plain[name].salient), name
        dense = plain[name].dequantize()
        assert float((pw.dequantize() - dense).norm() / dense.norm()) < 1e-3, name
