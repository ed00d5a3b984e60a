"""What a bug report needs to know: `python -m arbllm_kernels.info` or `arbllm info`. Works where parts are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "accelerate", "gguf", "numpy"),
    *("triton", "datasets", "lm-eval", "matplotlib", "vllm"),
)
VARIABLES = (
    "ARBLLM_FORCE_ISA",
    "ARBLLM_L1_KIB",
    "ARBLLM_ACTIVATIONS",
    "ARBLLM_REPACK",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
    "HF_HUB_OFFLINE",
)
ABSENT = "not installed"


def environment() -> dict[str, str]:
    """Name -> value, in the order to print; a part that is missing or broken says so."""
    values = {
        "arbllm_kernels": _version("arbllm_kernels"),
        "installed in": str(Path(__file__).parent),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": f"{os.cpu_count()}, usable {len(os.sched_getaffinity(0)) if sys.platform == 'linux' else '?'}",
    }
    values |= {name: _version(name) for name in PACKAGES}
    values |= _torch()
    values["CPU kernels"] = _native()
    values["CUDA kernels"] = _cuda_kernels()
    values |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return values


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def _processor() -> str:
    """Model name where Linux tells it, else the machine's architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def _torch() -> dict[str, str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"torch threads": f"torch cannot be imported: {_brief(error)}"}
    gpus = [
        f"{torch.cuda.get_device_name(i)}, compute capability {'.'.join(map(str, torch.cuda.get_device_capability(i)))}"
        for i in range(torch.cuda.device_count())
    ]
    return {
        "torch threads": str(torch.get_num_threads()),
        "torch CUDA": str(torch.version.cuda or "none in this build"),
        "GPUs": "; ".join(gpus) or "none",
    }


def _native() -> str:
    try:
        from . import native

        active, cache = native.active_isa(), native.extension.near_cache_bytes() >> 10
    except (ImportError, OSError, ValueError) as error:
        return f"unusable: {_brief(error)}"
    usable = ", ".join(name for name, works in native.available_isas().items() if works)
    return f"{active} in use; usable here: {usable}; first-level cache {cache} KiB"


def _cuda_kernels() -> str:
    try:
        from .cuda import unavailable

        return unavailable() or "usable"
    except (ImportError, OSError) as error:
        return f"unusable: {_brief(error)}"


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    """Print the environment, one line each."""
    values = environment()
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main()
