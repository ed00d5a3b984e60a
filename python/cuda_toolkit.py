"""Where nvcc is: below CUDA_HOME or CUDA_PATH, on PATH, among wheels, or in /usr/local/cuda.

For setup.py, the benchmarks and the tests, so that all of them take the compiler that the build takes: CMakeLists.txt
looks in the same order. Only the standard library is imported, as a build has no more.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

USUAL = "/usr/local/cuda/bin"


def folders() -> list[str]:
    """Folders that may hold nvcc, best first, PATH among them."""
    homes = [str(Path(os.environ[name]) / "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [*homes, *os.get_exec_path(), *wheels(), USUAL]


def wheels() -> list[str]:
    """Of the wheels nvidia-cuda-nvcc, -runtime, -cccl, -crt and nvidia-nvvm, newest first."""
    return [str(folder / "bin") for path in sys.path for folder in sorted(Path(path).glob("nvidia/cu*"), reverse=True)]


def nvcc() -> str | None:
    """The path of nvcc, or None."""
    return shutil.which("nvcc", path=os.pathsep.join(folders()))
