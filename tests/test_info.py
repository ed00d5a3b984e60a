"""The environment for bug reports, complete or with parts missing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import run

from arbllm_kernels import info, native


def test_it_names_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    values = info.environment()
    assert values["TRITON_INTERPRET"] == "1"
    assert importlib.import_module("torch").__version__.split("+")[0] == values["torch"].split("+")[0]
    assert native.active_isa() in values["CPU kernels"]
    text = run(capsys, "info")
    assert all(f"{name} " in text and value in text for name, value in values.items())


def test_it_names_the_first_level_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch loaded, and with it a second libstdc++ beside the extension's own."""
    monkeypatch.delenv("ARBLLM_L1_KIB", raising=False)
    told = Path("/sys/devices/system/cpu/cpu0/cache/index0/size")
    kib = int(told.read_text().strip().removesuffix("K")) if told.exists() else 32
    assert info.environment()["CPU kernels"].endswith(f"first-level cache {kib} KiB")
    monkeypatch.setenv("ARBLLM_L1_KIB", "99")
    assert native.extension.near_cache_bytes() == 99 * 1024


def test_native_code_uses_no_streams_of_cpp() -> None:
    """With torch loaded they read no number; the test above notices only where the cache is not of 32 KiB."""
    root = Path(__file__).parent.parent
    sources = [path for folder in ("csrc/cpu", "csrc/include", "python") for path in (root / folder).rglob("*.*")]
    text = "".join(path.read_text() for path in sources if path.suffix in (".cpp", ".h", ".inc"))
    assert "<algorithm>" in text
    assert not [name for name in ("fstream", "sstream", "iostream") if f"<{name}>" in text]


def test_a_package_that_is_absent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "PACKAGES", ("surely-no-such-package",))
    assert info.environment()["surely-no-such-package"] == "not installed"


def test_it_runs_without_extension_and_torch_cuda() -> None:
    code = """
import sys
sys.modules["arbllm_kernels._native"] = None  # as if it had never been built
sys.argv = ["info"]
import runpy
runpy.run_module("arbllm_kernels.info", run_name="__main__")
import torch, arbllm_kernels
try:
    arbllm_kernels.quantize_weight(torch.randn(4, 64), torch.eye(64))
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "unusable: ImportError: the native extension" in result.stdout
    assert result.stdout.rstrip().endswith("(needs a C++20 compiler)")
