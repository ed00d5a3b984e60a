"""What the build does about the CUDA kernels: nvcc found, none found, and none found though required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
import cuda_toolkit

ROOT = Path(__file__).resolve().parent.parent


def fake_nvcc(folder: Path) -> Path:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    return nvcc


def path_without_nvcc(folder: Path) -> str:
    """PATH, with a folder of links in place of each that holds an nvcc."""
    folders = []
    for place in map(Path, os.get_exec_path()):
        if (place / "nvcc").exists():
            links = folder / str(len(folders))
            links.mkdir(parents=True)
            for tool in place.iterdir():
                if tool.name != "nvcc":
                    (links / tool.name).symlink_to(tool)
            place = links
        folders.append(str(place))
    return os.pathsep.join(folders)


def configure(folder: Path, arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """CMake's answer, on a machine that has no nvcc but what the environment and the arguments give."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    kept |= {"PATH": path_without_nvcc(folder / "path"), **environment}
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    fixed = ("-DARB_PYTHON=OFF", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF")
    command = [cmake, f"-S{ROOT}", f"-B{folder / 'build'}", *fixed, *arguments]
    return subprocess.run(command, env=kept, capture_output=True, text=True)


def test_nvcc_below_cuda_home(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path / "toolkit" / "bin")
    done = configure(tmp_path, ["-DARB_NVCC_HINTS="], CUDA_HOME=str(tmp_path / "toolkit"))
    assert done.returncode == 0, done.stderr
    assert f"CUDA kernels: built with {nvcc}" in done.stdout


def test_nvcc_among_wheels(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path / "nvidia" / "cu13" / "bin")
    done = configure(tmp_path, [f"-DARB_NVCC_HINTS={nvcc.parent}", "-DARB_CUDA=ON"])
    assert done.returncode == 0, done.stderr
    assert f"CUDA kernels: built with {nvcc}" in done.stdout


def test_no_nvcc_is_said(tmp_path: Path) -> None:
    done = configure(tmp_path, ["-DARB_NVCC_HINTS="])
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: not built, because no nvcc was found; ARBLLM_CUDA=1 makes that an error." in done.stdout


def test_no_nvcc_though_required(tmp_path: Path) -> None:
    done = configure(tmp_path, ["-DARB_NVCC_HINTS=", "-DARB_CUDA=ON"])
    assert done.returncode != 0
    assert "ARBLLM_CUDA=1 asks for the CUDA kernels, but nvcc is neither on PATH" in " ".join(done.stderr.split())


def test_not_wanted(tmp_path: Path) -> None:
    done = configure(tmp_path, ["-DARB_CUDA=OFF"], CUDA_HOME=str(fake_nvcc(tmp_path / "t" / "bin").parent.parent))
    assert "CUDA kernels: not built, as asked (ARBLLM_CUDA=0)." in done.stdout


def test_where_benchmarks_and_tests_find_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CMake: CUDA_HOME, then PATH, then wheels."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(cuda_toolkit, "USUAL", str(tmp_path / "usual"))
    assert cuda_toolkit.nvcc() is None
    for folder, variable in (("usual", None), ("nvidia/cu13/bin", None), ("path", "PATH"), ("home/bin", "CUDA_HOME")):
        expected = fake_nvcc(tmp_path / folder)
        if variable is not None:
            monkeypatch.setenv(variable, str(expected.parent if variable == "PATH" else expected.parent.parent))
        assert cuda_toolkit.nvcc() == str(expected)


@pytest.mark.parametrize("wanted", ["yes", "2"])
def test_other_wishes_are_refused(wanted: str, tmp_path: Path) -> None:
    environment = {**os.environ, "ARBLLM_CUDA": wanted}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"ARBLLM_CUDA='{wanted}' must be 1 (CUDA kernels required), 0 (none) or unset" in done.stderr
