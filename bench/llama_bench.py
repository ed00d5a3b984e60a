"""Rows of llama.cpp for bench/gpu.py: what its llama-bench, built with CUDA, says of GGUF files, whatever their types.

A token reads nearly all of a file once, so tokens/s times its bytes is a bandwidth. It is of whole models, attention,
sampling and launches included, not of products alone.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

HEAD = ("file", "type", "build", "GB", "tokens/s", "GB/s", "of copy")
TOKENS = 128


def rows(program: str, files: Sequence[Path], speed: float) -> list[tuple[str, ...]]:
    """A row for each file; `speed`: bytes per microsecond of a copy.

    Raises:
        SystemExit: the program fails, or ran without CUDA; the message is its own.
    """
    found = []
    for file in files:
        command = [program, "-m", str(file), "-p", "0", "-n", str(TOKENS), "-ngl", "999", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{program} fails on {file}: {done.stderr.strip()[-500:]}")
        for run in json.loads(done.stdout):
            if "CUDA" not in run["backends"]:
                raise SystemExit(f"{program} is built for {run['backends']}, not for CUDA")
            rate = run["model_size"] * run["avg_ts"]
            cells = (f"{run['model_size'] / 1e9:.2f}", f"{run['avg_ts']:.1f}", f"{rate / 1e9:.0f}")
            found.append((file.name, run["model_type"], run["build_commit"], *cells, f"{rate / 1e6 / speed:.0%}"))
    return found
