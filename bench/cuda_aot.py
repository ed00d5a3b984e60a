"""What ptxas made of the CUDA kernels: registers, spills, shared memory, instructions per weight of the main loop.

    python bench/cuda_aot.py            compile for sm_80, 90, 100, 120; write bench/cuda_aot.json and print it
    python bench/cuda_aot.py --check    read arbllm_kernels/_cuda.so; exit with an error where anything is worse

The main loop is the straight piece of SASS with the most tensor-core instructions: a warp's 32 rows times one unit of
128 columns, with their row scales. Nothing is executed. Needs cuobjdump, and nvcc unless --check is given.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench" / "cuda_aot.json"
BUILT = ROOT / "arbllm_kernels" / "_cuda.so"
TARGETS = (80, 90, 100, 120)
WEIGHTS = 128  # per thread of one pass through the main loop
# Registers and warps of an SM, bytes of shared memory (1 KiB of each block's is the system's): CUDA programming guide.
SM = {80: (65536, 64, 164), 90: (65536, 64, 228), 100: (65536, 64, 228), 120: (65536, 48, 100)}
# name in the table -> name in the object, groups, Bs
KERNELS = {
    "gemv, groups": ("gemv_kernelILi2ELi1ELb0E", 2, 1),
    "gemv, groups, batch 3 to 8": ("gemv_kernelILi2ELi2ELb0E", 2, 2),
    "gemv, groups and means": ("gemv_kernelILi2ELi1ELb1E", 2, 1),
    "gemv": ("gemv_kernelILi1ELi1ELb0E", 1, 1),
    "gemv, means": ("gemv_kernelILi1ELi1ELb1E", 1, 1),
    "plain gemv": ("17plain_gemv_kernel", 0, 0),
    "dequantize": ("17dequantize_kernel", 0, 0),
    "finish": ("13finish_kernel", 0, 0),
    "pack": ("11pack_kernel", 0, 0),
    "unpack": ("13unpack_kernel", 0, 0),
}
Row = dict[str, str | int | float | None]


def cuobjdump() -> str | None:
    """The toolkit's, or the one in Triton's wheel."""
    spec = importlib.util.find_spec("triton")
    wheel = (
        [str(Path(p) / "backends" / "nvidia" / "bin") for p in (spec.submodule_search_locations or [])] if spec else []
    )
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(wheel))


def nvcc_release() -> str | None:
    """The version of the nvcc on PATH: figures of different compilers cannot be compared."""
    nvcc = shutil.which("nvcc")
    found = re.search(r"release ([\d.]+)", _run(nvcc, "--version")) if nvcc else None
    return found[1] if found else None


def table() -> dict[str, Any]:
    """The checked-in figures: "nvcc", the compiler's version, and "rows"."""
    return json.loads(TABLE.read_text())


def compiled(target: Path) -> Path:
    """One object with machine code for every target."""
    nvcc = shutil.which("nvcc")
    assert nvcc, "needs nvcc on PATH"
    codes = [f for arch in TARGETS for f in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    source = ROOT / "csrc" / "cuda" / "launchers.cu"
    subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-fatbin", *codes, f"-I{ROOT}/csrc/include", source, "-o", target], check=True
    )
    return target


def figures(binary: Path) -> list[Row]:
    """A row for every kernel and architecture in the object."""
    rows: list[Row] = []
    tool = cuobjdump()
    assert tool, "needs cuobjdump"
    for arch in TARGETS:
        usage = _run(tool, "-res-usage", "-arch", f"sm_{arch}", str(binary))
        sass = _run(tool, "-sass", "-arch", f"sm_{arch}", str(binary))
        code = {part.split("\n", 1)[0].strip(): part for part in sass.split("Function : ")[1:]}
        found = dict(re.findall(r"Function (\S+):\s*\n\s*(.*)", usage))
        for name, (symbol, groups, tiles) in KERNELS.items():
            for function, text in found.items():
                if symbol in function:
                    rows.append(_row(name, arch, text, code[function], groups, tiles))
    return rows


def _row(name: str, arch: int, usage: str, sass: str, groups: int, tiles: int) -> Row:
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    threads = 128 if groups else 256
    shared = shared_bytes(groups, tiles) if groups else 0
    loop, products = _main_loop(sass) if groups else (None, None)
    return {
        "kernel": name,
        "arch": arch,
        "registers": registers,
        "spills": spills,
        "stack": stack,
        "shared": shared,
        "warps": _warps(arch, registers, shared, threads),
        "instructions": loop,
        "tensor": products,
        "per_weight": None if loop is None else round(loop / WEIGHTS, 2),
    }


def shared_bytes(groups: int, tiles: int) -> int:
    """gemv_bytes of csrc/cuda/gemv.cuh for four warps, one stage and a second plane; a test asks the launchers."""
    return 4 * (16 + 6144 * tiles) + 4 * groups * 2048


def _warps(arch: int, registers: int, shared: int, threads: int) -> int:
    """Resident warps of an SM."""
    all_registers, all_warps, kilobytes = SM[arch]
    by_registers = all_registers // (-(-registers // 8) * 8 * 32) // (threads // 32)
    blocks = min(by_registers, all_warps * 32 // threads, kilobytes * 1024 // (shared + 1024))
    return blocks * threads // 32


def _main_loop(sass: str) -> tuple[int, int]:
    """Instructions, and tensor-core instructions, of the straight piece with the most of the latter."""
    code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", sass)
    targets = {int(t, 16) for _, op, rest in code if op in ("BRA", "BSSY") for t in re.findall(r"0x([0-9a-f]+)$", rest)}
    pieces: list[list[str]] = [[]]
    for address, op, _ in code:
        if int(address, 16) in targets:
            pieces.append([])
        pieces[-1].append(op)
        if op.split(".")[0] in ("BRA", "EXIT", "RET"):
            pieces.append([])
    best = max(pieces, key=lambda piece: sum(op.startswith("HMMA") for op in piece))
    return len(best), sum(op.startswith("HMMA") for op in best)


def worse(now: list[Row], before: list[Row]) -> list[str]:
    """What got worse, as sentences."""
    known = {(row["kernel"], row["arch"]): row for row in before}
    found = []
    for row in now:
        old = known.get((row["kernel"], row["arch"]))
        if old is None:
            found.append(f"{row['kernel']} on sm_{row['arch']} is not in {TABLE.name}: run bench/cuda_aot.py")
            continue
        for key in ("registers", "spills", "stack", "instructions"):
            if (row[key] or 0) > (old[key] or 0):  # type: ignore[operator]
                found.append(f"{row['kernel']} on sm_{row['arch']}: {key} {old[key]} -> {row[key]}")
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _markdown(rows: list[Row]) -> str:
    keys = ("kernel", "arch", "registers", "spills", "shared", "warps", "tensor", "instructions", "per_weight")
    lines = ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
    return "\n".join(
        [*lines, *("| " + " | ".join("" if r[k] is None else str(r[k]) for k in keys) + " |" for r in rows)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        found = worse(figures(BUILT), table()["rows"])
        sys.exit("\n".join(found) if found else 0)
    with tempfile.TemporaryDirectory() as folder:
        rows = figures(compiled(Path(folder) / "cuda.fatbin"))
    lines = ",\n".join(json.dumps(row) for row in rows)
    TABLE.write_text(f'{{"nvcc": "{nvcc_release()}", "rows": [\n{lines}\n]}}\n')
    print(_markdown(rows))


if __name__ == "__main__":
    main()
