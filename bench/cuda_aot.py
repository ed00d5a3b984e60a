"""What ptxas made of the CUDA kernels: registers, spills, shared memory; instructions and bytes per weight.

    python bench/cuda_aot.py            compile for sm_80, 90, 100, 120; write bench/cuda_aot.json and print it
    python bench/cuda_aot.py --check    read arbllm_kernels/_cuda.so; exit with an error where anything is worse

The main loop is a warp's 32 rows times one unit of 128 columns. What it takes depends on how many of them are
salient, so a kernel has a row for each path. Per weight: instructions, those of the integer and of the floating-point
pipe (each starts one in two cycles on sm_80), bytes read from shared and from global memory; planes, which are staged
before, count as global. Tensor instructions are of the whole pass. Nothing is executed. Needs cuobjdump, and nvcc
unless --check is given.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
import cuda_toolkit

ROOT = Path(__file__).resolve().parent.parent

TABLE = ROOT / "bench" / "cuda_aot.json"
BUILT = ROOT / "arbllm_kernels" / "_cuda.so"
TARGETS = (80, 90, 100, 120)
WEIGHTS = 128  # per thread of one pass through the main loop
PLANE_BYTES = 1 / 8  # per weight and plane: staged in shared memory before the loop
# Registers and warps of an SM, bytes of shared memory (1 KiB of each block's is the system's): CUDA programming guide.
SM = {80: (65536, 64, 164), 90: (65536, 64, 228), 100: (65536, 64, 228), 120: (65536, 48, 100)}
BINARY = (80, 90)  # architectures that run the kernel
INTEGER = frozenset(
    ("LOP3", "IADD3", "SHF", "LEA", "ISETP", "SEL", "IMNMX", "PRMT", "FMNMX", "FSEL", "FSETP", "MOV", "PLOP3", "VIADD")
)
FLOATING = frozenset(("FFMA", "FMUL", "FADD", "IMAD", "HADD2", "HFMA2", "HMUL2"))  # with whole multiplications
Row = dict[str, str | int | float | None]
Piece = list[tuple[str, str]]  # a straight piece of SASS: instructions and their operands


@dataclass(frozen=True)
class Kernel:
    """A kernel in the object, and what of its template decides about memory."""

    symbol: str
    archs: tuple[int, ...] = TARGETS
    groups: int = 0  # 0: no tensor-core kernel
    tiles: int = 0
    means: bool = False

    def shared(self) -> int:
        """Bytes for eight warps, one stage and a second plane; a test asks the launchers."""
        if self.groups == 0:
            return 0
        if self.archs != BINARY:
            return 4 * (16 + 6144 * self.tiles) + 8 * self.groups * 2048
        stride = 4 * (5 if self.means else 3) * self.groups + (4 if self.groups == 2 else 1)
        return 4 * (32 + 16 * 96 * self.tiles) + 8 * (128 * stride + self.groups * 2048)


KERNELS = {
    "binary": Kernel("18binary_gemv_kernelILi2ELi2ELb0E", BINARY, 2, 2),
    "binary, float32 x": Kernel("18binary_gemv_kernelILi2ELi3ELb0E", BINARY, 2, 3),
    "binary, means": Kernel("18binary_gemv_kernelILi2ELi2ELb1E", BINARY, 2, 2, True),
    "binary, means, float32 x": Kernel("18binary_gemv_kernelILi2ELi3ELb1E", BINARY, 2, 3, True),
    "binary, one group": Kernel("18binary_gemv_kernelILi1ELi2ELb0E", BINARY, 1, 2),
    "binary, one group, float32 x": Kernel("18binary_gemv_kernelILi1ELi3ELb0E", BINARY, 1, 3),
    "binary, one group, means": Kernel("18binary_gemv_kernelILi1ELi2ELb1E", BINARY, 1, 2, True),
    "binary, one group, means, float32 x": Kernel("18binary_gemv_kernelILi1ELi3ELb1E", BINARY, 1, 3, True),
    "bf16": Kernel("16bf16_gemv_kernelILi2ELi1ELb0E", TARGETS, 2, 1),
    "bf16, batch 3 to 8": Kernel("16bf16_gemv_kernelILi2ELi2ELb0E", TARGETS, 2, 2),
    "bf16, means": Kernel("16bf16_gemv_kernelILi2ELi1ELb1E", TARGETS, 2, 1, means=True),
    "bf16, one group": Kernel("16bf16_gemv_kernelILi1ELi1ELb0E", TARGETS, 1, 1),
    "bf16, one group, means": Kernel("16bf16_gemv_kernelILi1ELi1ELb1E", TARGETS, 1, 1, means=True),
    "plain gemv": Kernel("17plain_gemv_kernel"),
    "dequantize": Kernel("17dequantize_kernel"),
    "finish": Kernel("13finish_kernel"),
    "pack": Kernel("11pack_kernel"),
    "unpack": Kernel("13unpack_kernel"),
}
# Salient columns of a unit. Block 128 of the paper has a few; blocks of 2048, as in the presets best and compact, have
# units without any and units of nothing else.
FEW, NONE, ALL = "1 to 32 salient", "none salient", "all salient"


def cuobjdump() -> str | None:
    """The toolkit's, or the one in Triton's wheel."""
    spec = importlib.util.find_spec("triton")
    wheel = (
        [str(Path(p) / "backends" / "nvidia" / "bin") for p in (spec.submodule_search_locations or [])] if spec else []
    )
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(wheel))


def nvcc_release() -> str | None:
    """The version of the nvcc that a build takes: figures of different compilers cannot be compared."""
    nvcc = cuda_toolkit.nvcc()
    found = re.search(r"release ([\d.]+)", _run(nvcc, "--version")) if nvcc else None
    return found[1] if found else None


def table() -> dict[str, Any]:
    """The checked-in figures: "nvcc", the compiler's version, and "rows"."""
    return json.loads(TABLE.read_text())


def compiled(target: Path) -> Path:
    """One object with machine code for every target."""
    nvcc = cuda_toolkit.nvcc()
    assert nvcc, "needs nvcc"
    codes = [f for arch in TARGETS for f in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    source = ROOT / "csrc" / "cuda" / "launchers.cu"
    subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-fatbin", *codes, f"-I{ROOT}/csrc/include", source, "-o", target], check=True
    )
    return target


def figures(binary: Path) -> list[Row]:
    """The rows of every kernel and architecture in the object."""
    rows: list[Row] = []
    tool = cuobjdump()
    assert tool, "needs cuobjdump"
    for arch in TARGETS:
        usage = _run(tool, "-res-usage", "-arch", f"sm_{arch}", str(binary))
        sass = _run(tool, "-sass", "-arch", f"sm_{arch}", str(binary))
        code = {part.split("\n", 1)[0].strip(): part for part in sass.split("Function : ")[1:]}
        found = dict(re.findall(r"Function (\S+):\s*\n\s*(.*)", usage))
        for name, kernel in KERNELS.items():
            for function, text in found.items():
                if kernel.symbol in function and arch in kernel.archs:
                    rows += _rows(name, kernel, arch, text, code[function])
    return rows


def _rows(name: str, kernel: Kernel, arch: int, usage: str, sass: str) -> list[Row]:
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    common: Row = {
        "kernel": name,
        "arch": arch,
        "registers": registers,
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "stack": stack,
        "shared": kernel.shared(),
        "warps": _warps(arch, registers, kernel.shared()),
    }
    empty = dict.fromkeys(("instructions", "integer", "floating", "tensor", "shared_bytes", "global_bytes"))
    if kernel.groups == 0:
        return [{**common, "unit": None, **empty}]
    return [{**common, "unit": unit, **_counts(path, kernel.groups)} for unit, path in _paths(sass, kernel).items()]


def _counts(path: Sequence[Piece], groups: int) -> Row:
    """Of a pass through the main loop, per weight where it says so."""
    code = [(op, rest) for piece in path for op, rest in piece]
    names = [op.split(".")[0] for op, _ in code]

    def read(kind: str) -> float:
        widths = [int(found[1]) if (found := re.search(r"\.(64|128)\b", op)) else 32 for op, _ in code if _is(op, kind)]
        return sum(widths) / 8 / WEIGHTS

    return {
        "instructions": round(len(code) / WEIGHTS, 2),
        "integer": round(sum(op in INTEGER for op in names) / WEIGHTS, 2),
        "floating": round(sum(op in FLOATING for op in names) / WEIGHTS, 2),
        "tensor": sum(op.endswith("MMA") for op in names),
        "shared_bytes": round(read("LDS"), 2),
        "global_bytes": round(read("LDG") + groups * PLANE_BYTES, 3),
    }


def _is(op: str, kind: str) -> bool:
    return op.split(".")[0] == kind


def _paths(sass: str, kernel: Kernel) -> dict[str, list[Piece]]:
    """The pieces of the main loop that a unit runs through, by its salient columns."""
    pieces = _loop(sass)
    tensor = [any(op.split(".")[0].endswith("MMA") for op, _ in piece) for piece in pieces]
    products = [piece for i, piece in enumerate(pieces) if tensor[i]]
    if kernel.archs != BINARY:  # its other pieces are choices between types of scales
        products.sort(key=lambda piece: -len(piece))
        return {FEW: products[:2], NONE: products[:1]}
    # In the order of the source: term 0, terms 1 and 2 of few columns, terms 1 and 2 of many.
    assert len(products) == (5 if kernel.tiles == 2 else 3), f"{kernel.symbol}: {[len(piece) for piece in products]}"
    (first, *few), wide = products[:-2], products[-2:]
    rest = [piece for i, piece in enumerate(pieces) if not tensor[i]]
    fetch = [piece for piece in rest if any(_is(op, "LDG") or _is(op, "SHFL") for op, _ in piece)]
    always = [piece for piece in rest if piece not in fetch]
    paths = {NONE: [*always, first], ALL: [*always, *wide]}
    return {FEW: [*rest, first, *few], **paths} if few else paths


def _loop(sass: str) -> list[Piece]:
    """The innermost loop around all tensor-core instructions of the first kind, in straight pieces."""
    code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", sass)
    at = [int(address, 16) for address, _, _ in code]
    jumps = {}
    for address, (_, op, rest) in zip(at, code, strict=True):
        target = re.search(r"0x([0-9a-f]+)\s*$", rest)
        if op.split(".")[0] in ("BRA", "BSSY") and target:
            jumps[address] = int(target[1], 16)
    tensor = [address for address, (_, op, _) in zip(at, code, strict=True) if op.split(".")[0].endswith("MMA")]
    loops = [(to, end) for end, to in jumps.items() if to <= tensor[0] and end > tensor[-1]]
    begin, end = max(loops)
    pieces: list[Piece] = [[]]
    for address, (_, op, rest) in zip(at, code, strict=True):
        if not begin <= address <= end:
            continue
        if address in jumps.values():
            pieces.append([])
        pieces[-1].append((op, rest))
        if op.split(".")[0] in ("BRA", "EXIT", "RET"):
            pieces.append([])
    return [piece for piece in pieces if piece]


def _warps(arch: int, registers: int, shared: int) -> int:
    """Resident warps of an SM, eight in a block."""
    all_registers, all_warps, kilobytes = SM[arch]
    by_registers = all_registers // (-(-registers // 8) * 8 * 32) // 8
    return 8 * min(by_registers, all_warps // 8, kilobytes * 1024 // (shared + 1024))


def worse(now: list[Row], before: list[Row]) -> list[str]:
    """What got worse, as sentences."""
    known = {(row["kernel"], row["arch"], row["unit"]): row for row in before}
    found = []
    for row in now:
        name = f"{row['kernel']} on sm_{row['arch']}" + (f", {row['unit']}" if row["unit"] else "")
        old = known.get((row["kernel"], row["arch"], row["unit"]))
        if old is None:
            found.append(f"{name} is not in {TABLE.name}: run bench/cuda_aot.py")
            continue
        for key in (
            "registers",
            "spills",
            "stack",
            "shared",
            "instructions",
            "integer",
            "shared_bytes",
            "global_bytes",
        ):
            if (row[key] or 0) > (old[key] or 0):  # type: ignore[operator]
                found.append(f"{name}: {key} {old[key]} -> {row[key]}")
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _markdown(rows: list[Row]) -> str:
    keys = (
        "kernel",
        "arch",
        "unit",
        "registers",
        "spills",
        "shared",
        "warps",
        "tensor",
        "instructions",
        "integer",
        "floating",
    )
    keys = (*keys, "shared_bytes", "global_bytes")
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
