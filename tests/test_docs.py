"""Every Python example of the pages runs as printed, and every arbllm command on them runs with its own arguments."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import tiny
import typer.main
from architectures import token_ids
from test_cli import run

import arbllm_kernels as arb
from arbllm_kernels.cli import app
from arbllm_kernels.pipeline import quantize_checkpoint

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("transformers.md", "evaluation.md", "serving.md")
TEXTS = {page: (DOCS / page).read_text() for page in PAGES}
PYTHON = [(page, code) for page, text in TEXTS.items() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
COMMANDS = [line for text in TEXTS.values() for line in re.findall(r"^arbllm (.*)$", text, re.MULTILINE)]
NEEDS_HUB = ("--tasks paper",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: a dense folder, a packed file and folder, texts, a task."""
    path = tmp_path_factory.mktemp("docs")
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "w126"
    tiny.llama().save_pretrained(path / "dense")
    tokenizer.save_pretrained(path / "dense")
    quantize_checkpoint(path / "dense", path / "model.arb", arb.QuantConfig(block_size=32), token_ids(2))
    (path / "smol.arb").write_bytes((path / "model.arb").read_bytes())
    words = " ".join(f"w{i * 7 % 120}" for i in range(400))
    (path / "wiki.test.raw").write_text(words)
    (path / "corpus.txt").write_text(words)
    rows = [{"question": f"w{i}", "choices": ["w3", "w4"], "answer": i % 2} for i in range(4)]
    (path / "tasks").mkdir()
    (path / "tasks" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (
        "task: mine",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {path / 'tasks' / 'rows.jsonl'}}}}}",
        "output_type: multiple_choice",
        "test_split: test",
        "doc_to_text: question",
        "doc_to_choice: choices",
        "doc_to_target: answer",
    )
    (path / "tasks" / "mine.yaml").write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(line)
    known = {o for p in typer.main.get_command(app).commands[arguments[0]].params for o in p.opts}  # type: ignore[attr-defined]
    assert {a for a in arguments if a.startswith("--")} <= known
    if any(text in line for text in NEEDS_HUB):
        return
    if "--tasks" in arguments:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    if arguments[0] == "report":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    run(capsys, *arguments)


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[f"{page}-{i}" for i, (page, _) in enumerate(PYTHON)])
def test_python(page: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not Path("packed").exists():
        arb.convert("model.arb", "packed")
    names: dict[str, object] = {}
    exec(code, names)
    assert arb.bits_per_weight(names["model"]) > 2  # type: ignore[arg-type]


def test_there_are_examples_and_links_lead_somewhere() -> None:
    assert len(PYTHON) == 3 and len(COMMANDS) >= 9
    for page, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in link or (DOCS / link).exists(), (page, link)
