"""Compiles every Triton kernel in its default configuration for GPUs that need not be there, and reads the result.

    python bench/aot.py            compile what changed, for sm_80, 90, 100 and 120; write bench/aot.json and
                                   docs/gpu-compiled.md; --all compiles everything
    python bench/aot.py --check    an error where the table is not of these sources, or worse

The host functions of arbllm_kernels/triton_kernels run on small CPU tensors of LLaMA-like shapes with a recorder in
place of the launcher, so what is compiled is what they would start: the same constants, types and divisibility by 16.
Registers, spills and shared memory are read with cuobjdump from Triton's wheel. A loop is a stretch of SASS that ends
in a branch back to its beginning. The main loop of a solver kernel is the longest, of a product the first that holds no
other: the columns that are not salient. "per weight" are its instructions times the threads of a program over the
weights of one tile, both sides of branches included; "all" are the whole kernel's instructions. Nothing is executed.

The table keeps a digest of each kernel's Triton IR, from which all that follows is the compiler's doing. A kernel whose
IR is the table's need not be compiled again; a kernel whose IR is another one is, for every target.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import triton
from helpers import random_packed
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from arbllm_kernels import QuantConfig
from arbllm_kernels.ops import packed_args
from arbllm_kernels.triton_kernels.arb import refine_arb
from arbllm_kernels.triton_kernels.arb_rc import refine_arb_rc
from arbllm_kernels.triton_kernels.dequantize import dequantize, stored_columns
from arbllm_kernels.triton_kernels.gemm import gemm
from arbllm_kernels.triton_kernels.gemv import gemv
from arbllm_kernels.triton_kernels.launch import launched_by
from arbllm_kernels.triton_kernels.levels import Sweeper
from arbllm_kernels.triton_kernels.partition import partition, threshold_fractions
from arbllm_kernels.triton_kernels.rounding import rounding_error
from arbllm_kernels.triton_kernels.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
TABLE, PAGE = ROOT / "bench" / "aot.json", ROOT / "docs" / "gpu-compiled.md"
TARGETS = (80, 90, 100, 120)
COLUMNS = ("kernel", "arch", "threads", "registers", "spills", "shared", "loop", "per_weight", "all", "occupancy")
LAUNCH = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
TYPES = {
    **{torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16"},
    **{torch.int32: "*i32", torch.uint8: "*u8"},
}
# per SM: registers, warps, programs, bytes of shared memory; bytes one program may have (CUDA programming guide)
SM = {
    80: (65536, 64, 32, 164 << 10, 163 << 10),
    90: (65536, 64, 32, 228 << 10, 227 << 10),
    100: (65536, 64, 32, 228 << 10, 227 << 10),
    120: (65536, 48, 24, 100 << 10, 99 << 10),
}
SHORT = 8  # a loop of fewer instructions waits for something
TILE = 32  # columns at a time of the products
Launch = tuple[str, Any, tuple[Any, ...], dict[str, Any]]  # name, kernel, arguments, options


def recorded() -> Iterator[Launch]:
    """One launch of every kernel and default configuration, named; nothing runs."""
    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    seen = set()
    with launched_by(lambda kernel, grid, *args, **options: found.append((kernel, args, options))):
        for label, start in workloads().items():
            found.clear()
            start()
            for kernel, args, options in found:
                types = tuple(getattr(value, "dtype", type(value)) for value in args)
                key = (kernel.__name__, types, tuple(sorted(options.items())))
                if key not in seen:
                    seen.add(key)
                    names = [f"{k.lower()}={options[k]}" for k in ("BY", "ORDER", "NONZERO") if k in options]
                    yield (
                        " ".join([kernel.__name__, label, *(names if label.startswith("search") else [])]),
                        kernel,
                        args,
                        options,
                    )


def workloads() -> dict[str, Any]:
    """What starts the kernels: ARB-RC + CGB and its relatives, blocks of 128, zones as the paper has them."""
    n, k, m = 64, 128, 256
    stack, weight, zone, d = (
        Stack.of([n], "cpu"),
        torch.ones(n, k),
        torch.zeros(n, k, dtype=torch.uint8),
        torch.ones(1, k),
    )
    S, cfg = torch.ones(1, k, k), QuantConfig()
    fractions = threshold_fractions(cfg, weight.device)
    pw = packed_args(random_packed(n, m, salient=0.08))
    preset = packed_args(random_packed(n, 2048, 2048, shared=True, coded=True, ordered=True, salient=0.5))
    means = packed_args(random_packed(n, m, mean=True, col_scale=False, salient=0.08))
    wide = torch.ones(16, 2048, dtype=torch.float16)
    x = {dtype: torch.ones(64, m, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)}

    def rounding(w: torch.Tensor, z: torch.Tensor) -> None:
        scales = refine_arb_rc(w, stack, z, 4, 2, 2, 0).rounded(torch.float16)
        rounding_error(w, stack, w[:1], z, scales, 2)

    def search() -> None:
        partition(weight, stack, d, cfg, fractions)
        partition(weight, stack, d, cfg, fractions, S)

    # a panel: what columns should be, what they were, their coupling, row scales, column scales, which are salient
    panel = torch.ones(64, n)
    levels = (panel, panel, torch.ones(64, 64), torch.ones(6, n), panel[:, 0], panel[:, 0] > 0, torch.float16)
    w256, z256, S256 = torch.ones(n, 256), torch.zeros(n, 256, dtype=torch.uint8), torch.ones(1, 256, 256)

    return {
        **{f"preset, batch {b}": lambda b=b: gemv(wide[:b], *preset) for b in (1, 8)},
        "preset, batch 16": lambda: gemm(wide, *preset),
        "preset, dense": lambda: dequantize(*preset),
        "means, batch 1": lambda: gemv(x[torch.float16][:1], *means),
        "means, batch 16": lambda: gemm(x[torch.float16][:16], *means),
        "arb-rc": lambda: refine_arb_rc(weight, stack, zone, 4, 2, 2, 0),
        "arb": lambda: refine_arb(weight, stack, zone, 4, 2, 2, 1),
        "arb-x": lambda: refine_arb(weight, stack, zone, 4, 2, 2, 1, S),
        "search": search,
        "fp16 scales": lambda: rounding(weight, zone),
        "arb-rc 256": lambda: refine_arb_rc(w256, stack, z256, 4, 2, 2, 0),
        "fp16 scales 256": lambda: rounding(w256, z256),
        "arb 256": lambda: refine_arb(w256, stack, z256, 4, 2, 2, 1),
        "arb-x 256": lambda: refine_arb(w256, stack, z256, 4, 2, 2, 1, S256),
        "search 256": lambda: partition(w256, stack, torch.ones(1, 256), cfg, fractions, S256),
        "levels": lambda: Sweeper().sweep(*levels),
        "dense": lambda: dequantize(*pw),
        "dense fp16": lambda: stored_columns(*pw, first=0, last=n, dtype=torch.float16),
        **{f"batch {b}": lambda b=b: gemv(x[torch.float16][:b], *pw) for b in (1, 8)},
        "batch 16 fp16": lambda: gemm(x[torch.float16][:16], *pw),
        **{f"batch 64 {str(t)[6:]}": lambda t=t: gemm(x[t], *pw) for t in x},
    }


def specialised(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> ASTSource:
    """The kernel as Triton's launcher would specialise it for these arguments."""
    given = dict(zip(kernel.arg_names, args, strict=False))
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = options[parameter.name] if parameter.is_constexpr else given[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and special):
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name], aligned = TYPES[value.dtype], True
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            aligned = isinstance(value, int) and value % 16 == 0 and special
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def compiled(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], arch: int) -> Any:
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(specialised(kernel, args, options), target=target, options=launch_options(options))


def launch_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in LAUNCH if key in options}


def digest(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Of the kernel's Triton IR, without places in files, and its launch options."""
    target = GPUTarget("cuda", TARGETS[0], 32)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    parsed = backend.parse_options(launch_options(options))
    functions = backend.get_codegen_implementation(parsed)
    source = specialised(kernel, args, options)
    text = str(source.make_ir(target, parsed, functions, backend.get_module_map(), context))
    text = re.sub(r" loc\(.*?\)$|^#loc.*$", "", text, flags=re.MULTILINE)
    return hashlib.sha256((text + str(sorted(launch_options(options).items()))).encode()).hexdigest()[:16]


def figures(name: str, built: Any, options: dict[str, Any], arch: int) -> dict[str, Any]:
    """What the compiler made of one kernel."""
    usage = _tool("cuobjdump", "-res-usage", built.asm["cubin"])
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    sass = _tool("nvdisasm", "-c", built.asm["cubin"])
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    threads = 32 * options["num_warps"]
    loop, everything = _loops(sass, "COLS" not in options)
    tile = options.get("ROWS", 0) * options.get("COLS", TILE)
    return {
        "kernel": name,
        "arch": arch,
        "threads": threads,
        "registers": registers,
        "spills": spills,
        "stack": stack,
        "shared": built.metadata.shared,
        "all": everything,
        "loop": loop,
        "per_weight": round(loop * threads / tile, 1) if tile else None,
        "occupancy": round(_occupancy(registers, built.metadata.shared, options["num_warps"], arch), 2),
    }


def _tool(tool: str, flag: str, cubin: bytes) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, flag, file.name], capture_output=True, text=True, check=True).stdout


def _loops(sass: str, product: bool) -> tuple[int, int]:
    """(instructions of the main loop, or all where there is none; all instructions)."""
    position, labels, loops, count = 0, {}, [], 0
    for line in sass.splitlines():
        label = re.match(r"\s*(\.L_x?_?\d+):", line)
        if label:
            labels[label[1]] = position
        elif re.search(r"/\*[0-9a-f]{4,}\*/\s+\S", line):
            position, count = position + 1, count + ("NOP" not in line)
            target = re.search(r"BRA\S*\s.*?`\((\.L_x?_?\d+)\)", line)
            if target and target[1] in labels and position - labels[target[1]] > SHORT:
                loops.append((labels[target[1]], position))
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    lengths = [b - a for a, b in (inner if product else loops)]
    return (lengths[0] if product and lengths else max(lengths, default=count)), count


def _occupancy(registers: int, shared: int, warps: int, arch: int) -> float:
    all_registers, all_warps, programs, all_shared, _ = SM[arch]
    per_warp = -(-registers * 32 // 256) * 256
    fit = min(programs, all_warps // warps, all_registers // (per_warp * warps), all_shared // (shared + 1024))
    return fit * warps / all_warps


def problems(row: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """What is not allowed in a row, and what is worse than before."""
    name = f"{row['kernel']}, sm_{row['arch']}"
    found = [f"{name}: {row['spills']} spills"] if row["spills"] else []
    if row["shared"] > SM[row["arch"]][4]:
        found.append(f"{name}: {row['shared']} bytes of shared memory, a program may have {SM[row['arch']][4]}")
    if before is None:
        return [*found, f"{name}: not in {TABLE.name}; run bench/aot.py"]
    if row["occupancy"] < before["occupancy"]:
        found.append(f"{name}: occupancy {before['occupancy']} -> {row['occupancy']}")
    for key in ("registers", "shared", "loop", "all"):
        if row[key] > before[key] * 1.02:
            found.append(f"{name}: {key} {before[key]} -> {row[key]}")
    return found


def compare(always: Sequence[tuple[str, int]] = ()) -> list[str]:
    """Problems of the kernels as they are now, against the table; `always` are compiled even if nothing changed."""
    saved = json.loads(TABLE.read_text())
    table = {(r["kernel"], r["arch"]): r for r in saved["rows"]}
    found = []
    for name, kernel, args, options in recorded():
        changed = saved["digests"].get(name) != digest(kernel, args, options)
        if changed:
            found.append(f"{name}: the table is of other sources; run bench/aot.py")
        for arch in TARGETS:
            if changed or (name, arch) in always:
                row = figures(name, compiled(kernel, args, options, arch), options, arch)
                found += problems(row, table.get((name, arch)))
    return found


def page(rows: list[dict[str, Any]], version: str) -> str:
    lines = [
        "# What the compiler makes of the Triton kernels",
        "",
        f"Written by `python bench/aot.py` with Triton {version}; these builds never ran on a GPU. What the columns",
        "mean is said there; occupancy is computed from registers and shared memory. No kernel spills.",
        "",
        "| kernel | sm | threads | registers | spills | shared | loop, SASS | per weight | all | occupancy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [r[c] for c in COLUMNS]
        lines.append("| " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--all", action="store_true", help="compile kernels that have not changed, too")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled")
    options = parser.parse_args()
    if options.check:
        found = compare()
        raise SystemExit("\n".join(found) if found else 0)
    before = json.loads(TABLE.read_text())
    if options.all or before["triton"] != triton.__version__:
        before = {"digests": {}, "rows": []}
    known = {(row["kernel"], row["arch"]): row for row in before["rows"]}
    rows, found, digests = [], [], {}
    for name, kernel, args, choices in recorded():
        digests[name] = digest(kernel, args, choices)
        for arch in TARGETS:
            if before["digests"].get(name) == digests[name]:
                rows.append(known[name, arch])
                continue
            rows.append(figures(name, compiled(kernel, args, choices, arch), choices, arch))
            found += problems(rows[-1], rows[-1])
            print(rows[-1], flush=True)
    if found:
        raise SystemExit("\n".join(found))
    saved = {"triton": triton.__version__, "digests": digests, "rows": rows}
    TABLE.write_text(json.dumps(saved, indent=1) + "\n")
    PAGE.write_text(page(rows, triton.__version__))


if __name__ == "__main__":
    main()
