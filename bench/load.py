"""What loading an `.arb` file costs: time and resident memory, in a process that does nothing else.

    python bench/load.py FILE.arb

"before" is the process with torch, transformers and the model's class imported. File-backed memory is the mapped file,
which the system can drop and share between processes; anonymous memory is the process's own.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import arbllm_kernels as arb


def resident() -> dict[str, float]:
    """Megabytes from the kernel's own accounting (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"anonymous": values["RssAnon"], "file-backed": values["RssFile"]}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    arb.load(path)  # imports everything; this copy is dropped
    steps, before = [], resident()
    start = time.perf_counter()
    model, _ = arb.load(path)
    steps.append(("load", time.perf_counter() - start, resident()))
    start = time.perf_counter()
    with torch.no_grad():
        model(input_ids=torch.arange(16)[None])
    steps.append(("first 16 tokens", time.perf_counter() - start, resident()))
    print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB\n")
    print("| step | ms | anonymous MiB | file-backed MiB |")
    print("|---|---|---|---|")
    for name, seconds, now in steps:
        grown = [now[key] - before[key] for key in ("anonymous", "file-backed")]
        print(f"| {name} | {1e3 * seconds:.0f} | {grown[0]:+.1f} | {grown[1]:+.1f} |")


if __name__ == "__main__":
    main()
