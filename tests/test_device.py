"""Names of devices, and what is done where a device has no room."""

from __future__ import annotations

import pytest
import torch

from arbllm_kernels import InputError
from arbllm_kernels.device import device_of, roomy

HERE = torch.cuda.is_available()


def test_names() -> None:
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if HERE else "cpu")


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x", ""])
def test_no_such_kind_of_device(name: str) -> None:
    with pytest.raises(InputError, match="must be auto, cpu, cuda or cuda:N"):
        device_of(name)


@pytest.mark.skipif(HERE, reason="there is a CUDA device")
def test_no_such_device_here() -> None:
    with pytest.raises(InputError, match="torch finds no CUDA device here; use cpu"):
        device_of("cuda")


def test_a_device_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1200, 9999))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [roomy(cuda, 1000), roomy(cuda, 1001), roomy(cpu, 1001)] == [cuda, cpu, cpu]
