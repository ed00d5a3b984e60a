"""Builds the extension arbllm_kernels._native by running CMake and Ninja; everything else is in pyproject.toml.

Where nvcc is found (below CUDA_HOME, on PATH, or as the wheels nvidia-cuda-nvcc, -runtime, -cccl, -crt and nvidia-nvvm
of one version) it also builds arbllm_kernels/_cuda.so.

Environment: ARBLLM_CMAKE_ARGS holds further arguments for CMake, e.g. "-DARB_WERROR=ON". ARBLLM_CUDA=1 makes a missing
nvcc an error, ARBLLM_CUDA=0 skips the CUDA kernels. ARBLLM_CUDA_ARCHS lists compute capabilities, by default
"80;90;100;120"; newer ones run from PTX.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "python"))
import cuda_toolkit  # noqa: E402


class CMakeBuild(build_ext):
    """One CMake project, one extension."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Always the same folder: pip's own is a fresh temporary one each time, which would rebuild everything.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{platform.machine()}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            _tool("cmake"),
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *_cuda_arguments(),
            *shlex.split(os.environ.get("ARBLLM_CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run([_tool("cmake"), "--build", str(build), "--target", "_native", "arb_cuda"], check=True)

    def copy_extensions_to_source(self) -> None:
        """For `--inplace` and editable installs: setuptools copies the extension, this the CUDA kernels."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "arbllm_kernels" / "_cuda.so"
        wanted = ROOT / "arbllm_kernels" / "_cuda.so"
        wanted.unlink(missing_ok=True)
        if built.exists():
            shutil.copy2(built, wanted)


def _cuda_arguments() -> list[str]:
    """What CMake has to know about CUDA; the environment decides anew each time, not CMake's cache."""
    wanted = os.environ.get("ARBLLM_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"ARBLLM_CUDA={wanted!r} must be 1 (CUDA kernels required), 0 (none) or unset")
    return [
        "-UARB_NVCC",
        f"-DARB_CUDA={ {'': 'AUTO', '0': 'OFF', '1': 'ON'}[wanted] }",
        f"-DARB_CUDA_ARCHS={os.environ.get('ARBLLM_CUDA_ARCHS', '80;90;100;120')}",
        f"-DARB_NVCC_HINTS={';'.join([*cuda_toolkit.wheels(), cuda_toolkit.USUAL])}",
    ]


def _tool(name: str) -> str:
    """The tool beside this interpreter (a wheel's script) or else the one on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"building arbllm_kernels needs {name}: install it with pip or your package manager")
    return found


setup(ext_modules=[Extension("arbllm_kernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
