"""Load a packed folder through vLLM's own config, model and loader on the CPU, and compare every tensor with ours.

    VLLM_TARGET_DEVICE=cpu python tests/vllm_loader.py FOLDER

Where vLLM is installed (its CUDA wheel will do). Attention is not run: its CPU kernels are in no published wheel.
"""

from __future__ import annotations

import sys

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model

from arbllm_kernels.evaluate import load_any

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@torch.no_grad()
def main() -> None:
    config = EngineArgs(model=sys.argv[1], dtype="float32", max_model_len=64, enforce_eager=True).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, "tcp://127.0.0.1:29511", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        theirs = get_model(vllm_config=config)
    ours = load_any(sys.argv[1], "fp32")[0]
    linears = 0
    for name, module in theirs.named_modules():
        if hasattr(module, "matrices"):
            owner, _, leaf = name.rpartition(".")
            parts = [ours.get_submodule(f"{owner}.{part}") for part in FUSED.get(leaf, [leaf])]
            x = torch.randn(3, parts[0].in_features)
            y = module(x)
            y = y[0] if isinstance(y, tuple) else y  # (output, bias)
            assert torch.equal(y, torch.cat([part(x) for part in parts], -1)), name
            linears += len(parts)
    dense = dict(theirs.named_parameters())
    stored = {name: tensor for name, tensor in ours.state_dict().items() if name in dense}
    for name, tensor in stored.items():
        assert torch.equal(dense[name][: len(tensor)], tensor), name
    print(f"{linears} packed matrices and {len(stored)} dense tensors are equal")


if __name__ == "__main__":
    main()
