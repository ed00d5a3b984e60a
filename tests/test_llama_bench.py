"""bench/llama_bench.py against a stand-in for llama.cpp's llama-bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import llama_bench

RUN = {"build_commit": "8cf427ff", "backends": "CUDA", "model_type": "qwen2 7B IQ2_XXS", "model_size": 2_000_000_000}


def stand_in(folder: Path, run: dict[str, object], code: int = 0) -> str:
    program = folder / "llama-bench"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nassert sys.argv[1:3] == ['-m', '{folder / 'm.gguf'}']\n"
        "assert sys.argv[-1] == 'json'\n"
        f"print({json.dumps([run])!r})\nprint('no such model', file=sys.stderr)\nsys.exit({code})\n"
    )
    program.chmod(0o755)
    return str(program)


def test_rows(tmp_path: Path) -> None:
    program = stand_in(tmp_path, {**RUN, "avg_ts": 250.0})
    expected = ("m.gguf", "qwen2 7B IQ2_XXS", "8cf427ff", "2.00", "250.0", "500", "25%")
    assert llama_bench.rows(program, [tmp_path / "m.gguf"], speed=2e6) == [expected]
    assert len(expected) == len(llama_bench.HEAD)


def test_a_build_without_cuda_is_refused(tmp_path: Path) -> None:
    program = stand_in(tmp_path, {**RUN, "backends": "CPU", "avg_ts": 1.0})
    with pytest.raises(SystemExit, match="is built for CPU, not for CUDA"):
        llama_bench.rows(program, [tmp_path / "m.gguf"], speed=1.0)


def test_its_own_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such model"):
        llama_bench.rows(stand_in(tmp_path, RUN, code=1), [tmp_path / "m.gguf"], speed=1.0)
