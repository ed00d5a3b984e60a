"""Builds the extension arbllm_kernels._native by running CMake and Ninja; everything else is in pyproject.toml.

Environment: ARBLLM_CMAKE_ARGS holds further arguments for CMake, e.g. "-DARB_WERROR=ON".
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
            *shlex.split(os.environ.get("ARBLLM_CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run([_tool("cmake"), "--build", str(build), "--target", "_native"], check=True)


def _tool(name: str) -> str:
    """The tool beside this interpreter (a wheel's script) or else the one on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"building arbllm_kernels needs {name}: install it with pip or your package manager")
    return found


setup(ext_modules=[Extension("arbllm_kernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
