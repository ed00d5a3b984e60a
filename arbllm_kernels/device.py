"""Which device work runs on."""

from __future__ import annotations

import torch

from .errors import InputError


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name.

    Args:
        name: "auto" is the current CUDA device, or the CPU where torch finds none; else "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: no such device here, or neither a CPU nor a CUDA device.
    """
    found = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: must be auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not found:
        raise InputError(f"device {name!r}: torch finds no CUDA device here; use cpu")
    if device.index is not None and device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def roomy(device: torch.device, nbytes: int) -> torch.device:
    """The device, or the CPU where so many bytes and a fifth of them are more than it has free."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.2 * nbytes:
        return torch.device("cpu")
    return device
