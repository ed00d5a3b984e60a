"""Perplexity against its definition, and streamed text against `generate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from architectures import CONTEXT, VOCAB, build, token_ids, write_gguf

from arbllm_kernels import evaluate
from arbllm_kernels.container import save
from arbllm_kernels.errors import CalibrationError, InputError
from arbllm_kernels.evaluate import generate_stream, load_any, perplexity, text_ids


@pytest.mark.parametrize("chunk", [1, 5, 128])
def test_perplexity_is_its_definition(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", chunk)
    model, ids = build("llama"), token_ids(1, 50)[0]
    losses = []
    for start in (0, 16, 32):  # the last two tokens fill no window
        window = ids[start : start + 16]
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model(window[None]).logits[0, :-1].double(), window[1:])))
    seen: list[tuple[int, int, float]] = []
    value = perplexity(model, ids, 16, progress=lambda *now: seen.append(now))
    assert value == pytest.approx(math.exp(sum(losses) / 3), rel=1e-6)
    assert [now[:2] for now in seen] == [(1, 3), (2, 3), (3, 3)] and seen[-1][2] == value
    assert perplexity(model, ids[None], 16, windows=2) == pytest.approx(math.exp(sum(losses[:2]) / 2), rel=1e-6)


def test_overlapping_windows_count_new_tokens_only() -> None:
    model, ids = build("llama"), token_ids(1, 40)[0]
    total, targets = 0.0, 0
    for start, first in ((0, 1), (6, 10), (12, 10), (18, 10), (24, 10)):
        window = ids[start : start + 16]
        with torch.no_grad():
            logits = model(window[None]).logits[0, first - 1 : -1].double()
        total += float(F.cross_entropy(logits, window[first:], reduction="sum"))
        targets += 16 - first
    assert perplexity(model, ids, 16, stride=6) == pytest.approx(math.exp(total / targets), rel=1e-6)
    assert perplexity(model, ids, 16, stride=16) == perplexity(model, ids, 16)
    for stride in (0, 17):
        with pytest.raises(InputError, match=f"stride = {stride}"):
            perplexity(model, ids, 16, stride=stride)


@pytest.mark.parametrize(
    ("ids", "seqlen", "windows", "message"),
    [
        (torch.ones(40), 16, None, "torch.float32"),
        ([1, 2], 2, None, "list"),
        (torch.ones(2, 20, dtype=torch.int64), 16, None, "only one sequence"),
        (torch.ones(40, dtype=torch.int64), 1, None, "seqlen = 1"),
        (torch.ones(99, dtype=torch.int64), CONTEXT + 1, None, f"context of {CONTEXT}"),
        (torch.ones(40, dtype=torch.int64), 16, 3, "make 1..2 windows of 16"),
        (torch.ones(40, dtype=torch.int64), 16, 0, "make 1..2 windows"),
        (torch.full((40,), VOCAB), 16, None, f"span {VOCAB}..{VOCAB}"),
    ],
)
def test_bad_ids_are_refused(ids: Any, seqlen: int, windows: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        perplexity(build("llama"), ids, seqlen, windows=windows)


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(CalibrationError, match="3 tokens do not fill one window of 16"):
        perplexity(build("llama"), torch.ones(3, dtype=torch.int64), 16)


def test_streamed_text_is_what_generate_writes() -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    prompt = tokenizer("w1 w2 w3", return_tensors="pt")
    whole = model.generate(
        prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=8, do_sample=False
    )
    pieces = list(generate_stream(model, tokenizer, "w1 w2 w3", 8))
    assert "w1 w2 w3" + "".join(pieces) == tokenizer.decode(whole[0], skip_special_tokens=True) and len(pieces) > 1

    def sampled(seed: int) -> str:
        return "".join(generate_stream(model, tokenizer, "w1", 12, temperature=2.0, seed=seed))

    state = torch.random.get_rng_state()
    assert sampled(1) == sampled(1) != sampled(2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_chat_wraps_the_prompt_in_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    tokenizer.chat_template = "w9 {% for m in messages %}{{ m.content }} {% endfor %}w8"
    seen: list[list[int]] = []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda **k: (seen.append(k["input_ids"][0].tolist()), original(**k))[1])
    for chat in (True, False):
        list(generate_stream(model, tokenizer, "w1", 2, chat=chat))
    assert seen == [[9, 1, 8], [1]]
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        generate_stream(model, tokenizer, "w1", 2, chat=True)


def test_generation_errors_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    for arguments in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}):
        with pytest.raises(InputError, match="max_new_tokens"):
            generate_stream(model, tokenizer, "w1", **arguments)
    with pytest.raises(InputError, match="prompt is empty"):
        generate_stream(model, tokenizer, "")
    with pytest.raises(InputError, match=f"context of {CONTEXT}"):
        generate_stream(model, tokenizer, "w1 " * CONTEXT)

    def fail(**_: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(ZeroDivisionError, match="inside"):
        list(generate_stream(model, tokenizer, "w1", 4))


def test_any_kind_of_model_loads(tmp_path: Path) -> None:
    model = tiny.llama(dtype=torch.float16)
    model.save_pretrained(tmp_path / "folder")
    tiny.tokenizer().save_pretrained(tmp_path / "folder")
    save(tiny.pack_linears(model), tmp_path / "m.arb", tiny.tokenizer())
    gguf = write_gguf(tmp_path / "m.gguf")
    for source, dtype, expected in [
        (tmp_path / "folder", "bf16", torch.bfloat16),
        (tmp_path / "folder", "fp32", torch.float32),
        (tmp_path / "m.arb", "fp32", torch.float32),
        (gguf, "auto", torch.float32),
    ]:
        loaded, tokenizer = load_any(source, dtype)
        assert loaded.get_input_embeddings().weight.dtype == expected and tokenizer is not None
        assert not loaded.training
    if not torch.cuda.is_available():
        for source in (tmp_path / "folder", tmp_path / "m.arb"):
            assert load_any(source)[0].get_input_embeddings().weight.dtype == torch.float32
    with pytest.raises(InputError, match="dtype = 'int8'"):
        load_any(gguf, "int8")


def test_text_ids_reads_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_text("w1 w2\nw3")
    assert text_ids(tmp_path / "a.raw", tiny.tokenizer()).tolist() == [1, 2, 3]
