"""Calibration text: files, windows, and text the model writes itself."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import CONTEXT, VOCAB, build

from arbllm_kernels import calibration
from arbllm_kernels.calibration import calibration_ids, read_text, tokenize
from arbllm_kernels.errors import CalibrationError

WORDS = [f"w{i % 120}" for i in range(400)]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return tiny.tokenizer()


def test_windows_of_a_text_file_start_where_python_random_says(tokenizer: object, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" ".join(WORDS))
    ids = calibration_ids(path, tokenizer, 5, 16, 7)
    assert ids.dtype == torch.int64 and ids.shape == (5, 16)
    draw = random.Random(7)
    for row in ids:
        start = draw.randint(0, 400 - 17)
        assert row.tolist() == [i % 120 for i in range(start, start + 16)]
    assert not torch.equal(ids, calibration_ids(path, tokenizer, 5, 16, 8))


def test_no_special_tokens_are_added(tokenizer: object) -> None:
    assert tokenize("w1 w2 nonsense", tokenizer).tolist() == [1, 2, 127]


@pytest.mark.parametrize("split", [False, True])
def test_tokens_are_those_that_the_tokenizer_gives(split: bool) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.split_special_tokens = split
    for text in ("w1 w2 nonsense", "", f"w3 {tokenizer.eos_token} w4"):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokenizer.backend_tokenizer.enable_truncation(2)
        tokenizer.backend_tokenizer.enable_padding(length=9)
        assert tokenize(text, tokenizer).tolist() == expected


def test_a_tokenizer_that_encodes_in_its_own_way_does_so() -> None:
    class Own(type(tiny.tokenizer())):  # type: ignore[misc]
        def _encode_plus(self, *args: object, **kwargs: object) -> dict[str, list[int]]:
            return {"input_ids": [7]}

    own = tiny.tokenizer()
    own.__class__ = Own
    assert tokenize("w1 w2", own).tolist() == [7]


def words(text: str) -> Any:
    """A byte-level BPE tokenizer, as GPT-2's, trained on `text`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own.train_from_iterator([text], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=own)


def pieces_of(text: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Into how many `tokenize` cuts the text where a piece has 600 characters; checks the tokens."""
    monkeypatch.setattr(calibration, "PIECE", 600)
    found, pieces = [], calibration._pieces
    monkeypatch.setattr(calibration, "_pieces", lambda *given: found.append(pieces(*given)) or found[0])
    assert tokenize(text, tokenizer).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(found[0]) if found else 1


TEXT = " ".join(f"the {i} tall trees,\n\nfell;  {'a' * (i % 9)} quick brown{' ' * (i % 4)}\n" for i in range(200))


def test_long_texts_are_tokenized_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pieces_of(TEXT, words(TEXT), monkeypatch) > 10


@pytest.mark.parametrize("kind", ["a start of its own", "a token across", "no words", "no gaps", "short"])
def test_other_texts_are_tokenized_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import normalizers

    across = TEXT + "New York " * 300  # far from the first cuts
    text = {"no gaps": TEXT.replace(" ", "_"), "short": TEXT[:700], "a token across": across}.get(kind, TEXT)
    tokenizer = words(TEXT)
    if kind == "a start of its own":
        tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("a")
    if kind == "a token across":
        tokenizer.add_tokens(["New York"])
    if kind == "no words":
        tokenizer.backend_tokenizer.pre_tokenizer = None
    assert pieces_of(text, tokenizer, monkeypatch) == 1


def test_jsonl_and_parquet_hold_the_same_text(tokenizer: object, tmp_path: Path) -> None:
    rows = [{"text": "w1 w2", "body": "w3"}, {"text": "w4", "body": "w5"}]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_text(jsonl) == "w1 w2\n\nw4" and read_text(jsonl, "body") == "w3\n\nw5"
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_text(tmp_path / "a.parquet", "body") == "w3\n\nw5"
    with pytest.raises(CalibrationError, match="no column 'other' but text, body"):
        read_text(tmp_path / "a.parquet", "other")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(CalibrationError, match="not a readable parquet"):
        read_text(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "no such file"),
        ("a.txt", b" \n ", "holds no text"),
        ("a.txt", b"w1 w2 w3", "holds 3 tokens, windows of 16 need at least 17"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.doc", b"w1", "unknown kind of text"),
        ("a.jsonl", b'{"text": "w1"}\n{broken', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "w1"}', "line 1 has no text field 'text'"),
        ("a.jsonl", b"[1]", "line 1 has no text field"),
    ],
)
def test_bad_text_is_refused(name: str, content: bytes | None, message: str, tokenizer: object, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        calibration_ids(tmp_path / name, tokenizer, 2, 16, 0)


def test_exactly_one_window_more_than_needed_is_enough(tokenizer: object, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(WORDS[:17]))
    assert calibration_ids(tmp_path / "a.txt", tokenizer, 1, 16, 0).tolist() == [list(range(16))]


def test_other_refusals(tokenizer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for samples, seqlen in ((0, 16), (1, 1)):
        with pytest.raises(CalibrationError, match="at least 1 sample of 2 tokens"):
            calibration_ids("self", tokenizer, samples, seqlen, 0)
    with pytest.raises(CalibrationError, match="needs the model"):
        calibration_ids("self", tokenizer, 1, 16, 0)
    with pytest.raises(CalibrationError, match="without a tokenizer"):
        calibration_ids(tmp_path / "a.txt", None, 1, 16, 0)
    with pytest.raises(CalibrationError, match=f"context of {CONTEXT}"):
        calibration_ids("self", tokenizer, 1, CONTEXT + 1, 0, build("llama"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match=r"arbllm_kernels\[data\]"):
        calibration_ids("hub:wikitext", tokenizer, 1, 16, 0)


def test_hub_names_are_split_into_config_and_split(tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, split: str) -> object:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["w1 w2", "", "w3"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    for spec in ("hub:org/a", "hub:org/a:test", "hub:org/a:raw:test"):
        assert read_text(spec) == "w1 w2\n\nw3"
    assert asked == [("org/a", None, "train"), ("org/a", None, "test"), ("org/a", "raw", "test")]
    for spec in ("hub:", "hub:a:b:c:d"):
        with pytest.raises(CalibrationError, match="write hub:NAME"):
            read_text(spec)
    with pytest.raises(CalibrationError, match="no column 'body' but text"):
        read_text("hub:org/a", "body")


def test_self_written_text_is_sampled_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, written = build("llama"), []
    with torch.no_grad():
        model.lm_head.weight *= 50  # far from uniform, so that a wrong cache would show
    monkeypatch.setattr("arbllm_kernels.calibration.BATCH", 2)
    before = torch.random.get_rng_state()
    ids = calibration_ids("self", None, 3, 20, 4, model, advance=written.append)
    assert ids.dtype == torch.int64 and ids.shape == (3, 20) and 0 <= int(ids.min()) <= int(ids.max()) < VOCAB
    assert sum(written) == 3 * 19
    assert torch.equal(ids, calibration_ids("self", None, 3, 20, 4, model))
    assert not torch.equal(ids, calibration_ids("self", None, 3, 20, 5, model))
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[:, 1:]  # the first token is uniform
    assert float(chosen.mean()) > float(logits.log_softmax(-1).mean()) + 1

    class WithBos:
        bos_token_id = 9

    assert calibration_ids("self", WithBos(), 2, 20, 4, model)[:, 0].tolist() == [9, 9]
