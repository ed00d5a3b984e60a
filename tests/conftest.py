"""Shared fixtures: every instruction set this machine can run, forced in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from arbllm_kernels import native

ISAS = [name for name, usable in native.available_isas().items() if usable]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an instruction set that is forced while the test runs."""
    with native.forced_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
