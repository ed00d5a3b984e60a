"""Evaluation texts and tasks by name. The hub is never asked: its data sets are stood in for by rows made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from test_cli import attempt, run

import arbllm_kernels as arb
from arbllm_kernels import tasks
from arbllm_kernels.errors import CalibrationError, InputError
from arbllm_kernels.eval_data import TEXTS, hub_ids


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every data set has 1200 rows "w0", "w1", ... in the column the text says; gives the arguments of the calls."""
    calls: list[dict[str, Any]] = []

    def load_dataset(**arguments: Any) -> datasets.Dataset:
        calls.append(arguments)
        column = "sentence" if "ptb" in arguments["path"] else "text"
        return datasets.Dataset.from_dict({column: [f"w{i % 120}" for i in range(1200)]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


class Recorder:
    """A tokenizer that keeps the text and gives one token per word after a beginning-of-text token."""

    text = ""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.text = text
        return {"input_ids": [7, *range(len(text.split()))]}


def test_texts_are_cut_as_in_the_paper(hub: list[dict[str, Any]]) -> None:
    tokenizer = Recorder()
    assert hub_ids("wikitext2", tokenizer, 2048).tolist() == [7, *range(1200)]
    assert tokenizer.text.startswith("w0\n\nw1\n\n") and hub[0]["split"] == "test"
    assert len(hub_ids("ptb", tokenizer, 2048)) == 1201 and tokenizer.text.startswith("w0 w1 ")
    assert len(hub_ids("c4", tokenizer, 2048)) == 1101  # of 1100 rows
    assert len(hub_ids("c4", tokenizer, 4)) == 1024  # 256 windows
    assert "validation" in str(hub[-1]["data_files"])


def test_what_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="names are wikitext2, ptb, c4"):
        hub_ids("wikitext", Recorder(), 16)

    def unreachable(**_: Any) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for name in TEXTS:
        with pytest.raises(CalibrationError, match=f"{name}: cannot be had from the hub: no route. Give a text file"):
            hub_ids(name, Recorder(), 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "m.arb"
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "w126"  # lm-eval will not work without one
    arb.save(tiny.pack_linears(tiny.llama()), path, tokenizer)
    return path


def test_eval_without_options_measures_wikitext2(
    capsys: pytest.CaptureFixture[str], model: Path, hub: list[dict[str, Any]]
) -> None:
    result = json.loads(run(capsys, "eval", model, "--seqlen", 32, "--stride", 16, "--windows", 3, "--json"))
    (row,) = result["texts"]
    assert (row["text"], row["seqlen"], row["stride"], row["windows"]) == ("wikitext2", 32, 16, 3)
    ids = hub_ids("wikitext2", tiny.tokenizer(), 32)
    assert row["perplexity"] == arb.perplexity(arb.load(model)[0], ids, 32, stride=16, windows=3)
    assert hub[0]["name"] == "wikitext-2-raw-v1" and result["tasks"] == {}


def test_task_names() -> None:
    assert tasks.task_names("piqa, mine") == ["piqa", "mine"]
    assert tasks.task_names("paper,x") == [*tasks.PAPER_TASKS, "x"] and len(tasks.PAPER_TASKS) == 7
    with pytest.raises(InputError, match="no task"):
        tasks.task_names(",")


def test_mean_accuracy() -> None:
    assert tasks.mean_accuracy({"a": {"acc": 0.5, "acc_norm": 1.0}, "b": {"acc": 1.0}, "c": {"f1": 0.1}}) == 0.75
    assert tasks.mean_accuracy({"c": {"f1": 0.1}}) is None


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A folder with one task of four questions, two choices each."""
    rows = [{"question": f"w{i} w{i + 1}", "choices": ["w3", "w4"], "answer": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (
        "task: mine",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}",
        "output_type: multiple_choice",
        "test_split: test",
        "doc_to_text: question",
        "doc_to_choice: choices",
        "doc_to_target: answer",
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
    )
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    return tmp_path


def test_own_tasks_through_lm_eval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path, own_task: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(own_task / "cache"))
    output = run(capsys, "eval", model, "--tasks", "mine", "--include-path", own_task, "--json")
    result = json.loads(output[output.index("{") :])
    assert list(result["tasks"]) == ["mine"] and result["texts"] == []
    loaded, tokenizer = arb.load(model)
    right = 0
    for i in range(4):
        with torch.no_grad():
            logits = loaded(tokenizer(f"w{i} w{i + 1}", return_tensors="pt").input_ids).logits[0, -1]
        right += int(logits[4] > logits[3]) == i % 2
    assert result["tasks"]["mine"]["acc"] == right / 4 == result["mean_accuracy"]
    code, _, err = attempt(capsys, "eval", model, "--tasks", "unheard-of")
    assert code == 1 and "unheard-of" in err
    code, _, err = attempt(capsys, "eval", model, "--tasks", "mine", "--include-path", own_task / "none")
    assert code == 1 and "no such folder" in err
