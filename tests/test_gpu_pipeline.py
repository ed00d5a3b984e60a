"""Whole models on a CUDA device: quantized, tuned, run. `make test-gpu` runs these."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from arbllm_kernels import QuantConfig
from arbllm_kernels.evaluate import load_any
from arbllm_kernels.pipeline import quantize_checkpoint
from arbllm_kernels.tuning import tune_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.mark.parametrize("preset", ["paper", "compact"])
def test_a_checkpoint_on_the_device_as_on_the_cpu(preset: str, tmp_path: Path) -> None:
    dense, ids, errors = tmp_path / "dense", torch.randint(0, 128, (4, 32)), []
    tiny.llama().save_pretrained(dense)
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.arb"
        cfg = QuantConfig.preset(preset)
        records = quantize_checkpoint(dense, out, cfg, ids, device=device, progress=False).linears
        errors.append(sum(record.error for record in records) / len(records))
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
    tuned = tmp_path / "tuned.arb"
    summary = tune_file(tmp_path / "cuda.arb", tuned, dense, ids, device="cuda", progress=False)
    assert summary.divergence[-1] < summary.divergence[0]
    logits = [load_any(tuned, "fp32", device)[0](input_ids=ids.to(device)).logits.cpu() for device in ("cpu", "cuda")]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
