"""The one place where Triton kernels are started.

Every host function of this folder calls `launch`, and so a program can put something else in its place for a while:
the tests a machine that executes the compiled PTX on the CPU, bench/aot.py a recorder of what would be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton

from ..errors import InputError

Grid = tuple[int, ...]
Launcher = Callable[..., Any]


def _on_device(kernel: Any, grid: Grid, *args: Any, **options: Any) -> None:
    device = next(t.device for t in args if isinstance(t, torch.Tensor))
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise InputError(f"Triton kernels run on CUDA tensors, got one on {device}: move it or use another backend")
    kernel[grid](*args, **options)


_launcher: Launcher = _on_device


def launch(kernel: Any, grid: Grid, *args: Any, **options: Any) -> None:
    """Start `kernel` on `grid`. Options: its constexpr parameters, num_warps, num_stages and enable_fp_fusion."""
    _launcher(kernel, grid, *args, **options)


@contextmanager
def launched_by(launcher: Launcher) -> Iterator[None]:
    """Within the with-block, `launcher(kernel, grid, *args, **options)` is called for every launch."""
    global _launcher
    before, _launcher = _launcher, launcher
    try:
        yield
    finally:
        _launcher = before
