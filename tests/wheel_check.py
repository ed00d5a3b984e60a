"""make wheel-check: a wheel per Python, built from the source distribution, used in a clean environment.

    python tests/wheel_check.py 3.10 3.12      # versions that uv finds, or paths of interpreters

Every instruction set this processor has is forced in turn by ARBLLM_FORCE_ISA, as a user would: one wheel holds them
all and chooses when it runs. ARBLLM_CUDA=0 builds wheels without the CUDA kernels; unset, they are in if nvcc is found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
DENSE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained("dense")
sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("dense")
open("corpus.txt", "w").write(" ".join(f"w{i * 7 % 128}" for i in range(400)))
"""
ISAS = "from arbllm_kernels.native import available_isas as a; print(*[name for name, works in a().items() if works])"
LIBRARY = """
import arbllm_kernels
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("folder")
print(model.generate(max_new_tokens=4, do_sample=False, eos_token_id=None).shape[1])
"""


def run(*command: str | Path, cwd: Path, fails: bool = False, **environment: str) -> str:
    """What the command wrote; stops the check, showing it, when the command fails (or, `fails`, does not)."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if (done.returncode != 0) != fails:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout


def expect(text: str, output: str) -> None:
    if text not in output:
        sys.exit(f"{output}\nwheel-check: {text!r} is not in this output")


def environment(folder: Path, python: str, *packages: str | Path) -> Path:
    """The programs of a new virtual environment with these packages and what they need."""
    run(UV, "venv", "-q", "--python", python, folder, cwd=ROOT)
    run(UV, "pip", "install", "-q", "--python", folder / "bin" / "python", *packages, cwd=ROOT)
    return folder / "bin"


def build(python: str, folder: Path) -> Path:
    """The wheel in dist/, which `build` makes out of the source distribution that it made before."""
    tools = environment(folder / "tools", python, "build[uv]")
    run(tools / "python", "-m", "build", "--installer", "uv", "--outdir", ROOT / "dist", ROOT, cwd=folder)
    return max((ROOT / "dist").glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def use(bin_folder: Path, cwd: Path) -> list[str]:
    """Quantize, verify, convert, generate; the instruction sets it was done with."""
    python, arbllm = bin_folder / "python", bin_folder / "arbllm"
    run(python, "-c", DENSE, cwd=cwd)
    isas = run(python, "-c", ISAS, cwd=cwd).split()
    for isa in isas:
        expect(f"{isa} in use", run(python, "-m", "arbllm_kernels.info", cwd=cwd, ARBLLM_FORCE_ISA=isa))
        options = ("--calib", "corpus.txt", "--samples", "2", "--seqlen", "64", "--overwrite")
        run(arbllm, "quantize", "dense", "m.arb", *options, cwd=cwd, ARBLLM_FORCE_ISA=isa)
        expect("good", run(arbllm, "verify", "m.arb", cwd=cwd))
        expect("w1 w2", run(arbllm, "generate", "m.arb", "w1 w2", "-n", "4", cwd=cwd, ARBLLM_FORCE_ISA=isa))
    run(arbllm, "info", cwd=cwd, ARBLLM_FORCE_ISA="nonsense")
    run(arbllm, "generate", "m.arb", "w1", cwd=cwd, fails=True, ARBLLM_FORCE_ISA="nonsense")
    run(arbllm, "convert", "m.arb", "folder", cwd=cwd)
    expect("5", run(python, "-c", LIBRARY, cwd=cwd))
    return isas


def main() -> None:
    for python in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wheel = build(python, folder)
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
            installed = environment(folder / "clean", python, wheel)
            isas = use(installed, folder)
            names = ("arbllm_kernels", "torch ", "transformers", "python", "CUDA kernels")
            lines = run(installed / "python", "-m", "arbllm_kernels.info", cwd=folder).splitlines()
            print("\n".join(line for line in lines if line.startswith(names)))
            print(f"quantized, verified, converted, generated with {', '.join(isas)}", flush=True)


if __name__ == "__main__":
    main()
