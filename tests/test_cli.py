"""The `arbllm` command, from a folder on disk to generated text, and the one line each mistake gets."""

from __future__ import annotations

import io
import json
import sys

import pytest
import tiny
from safetensors.torch import load_file, save_file
from typer.main import get_command

import arbllm_kernels as arb
from arbllm_kernels import cli
from arbllm_kernels.cli import core
from arbllm_kernels.config import QuantConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer, as `save_pretrained` writes it, and a text."""
    path = tmp_path_factory.mktemp("model")
    tiny.llama().save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    (path / "text.txt").write_text(" ".join(f"w{i * 7 % 120}" for i in range(400)))
    return path


def run(capsys, *args: object) -> str:
    """Standard output of a command that succeeds."""
    code, out, err = attempt(capsys, *args)
    assert code == 0, err
    return out


def attempt(capsys, *args: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    old, sys.argv = sys.argv, ["arbllm", *map(str, args)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def packed(folder):
    """The folder's model as an `.arb` file, made by the command."""
    out = folder / "model.arb"
    old, sys.argv = sys.argv, [
        "arbllm", "quantize", str(folder), str(out), "--calib", str(folder / "text.txt"),
        "--samples", "4", "--seqlen", "32", "--block-size", "32",
    ]  # fmt: skip
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    finally:
        sys.argv = old
    return out


def test_inspect_adds_up(capsys, packed):
    report = json.loads(run(capsys, "inspect", packed, "--json"))
    assert sum(report["parts"].values()) == packed.stat().st_size
    assert len(report["weights"]) == 14
    text = run(capsys, "inspect", packed)
    assert "model.layers.1.mlp.down_proj" in text
    assert "true bits" in text and "nominal" in text
    assert f"{packed.stat().st_size:,}" in text


def test_verify(capsys, packed, tmp_path):
    assert "good" in run(capsys, "verify", packed)
    broken = tmp_path / "broken.arb"
    data = bytearray(packed.read_bytes())
    data[-100] ^= 1
    broken.write_bytes(data)
    code, _, err = attempt(capsys, "verify", broken)
    assert code == 1
    assert "broken.arb" in err and "bytes" in err


def test_eval(capsys, folder, packed):
    args = ("--text", folder / "text.txt", "--seqlen", 32, "--windows", 4)
    result = json.loads(run(capsys, "eval", packed, *args, "--json"))
    dense = json.loads(run(capsys, "eval", folder, *args, "--json"))
    (packed_row,), (dense_row,) = result["texts"], dense["texts"]
    assert packed_row["windows"] == 4 and packed_row["stride"] == 32
    assert 20 < dense_row["perplexity"] < 1000 and 20 < packed_row["perplexity"] < 1000
    assert packed_row["perplexity"] != dense_row["perplexity"]
    assert "perplexity" in run(capsys, "eval", packed, *args)


def test_generate(capsys, packed):
    first = run(capsys, "generate", packed, "w1 w2 w3", "-n", 8)
    assert first.startswith("w1 w2 w3")
    assert len(first.split()) > 4
    assert run(capsys, "generate", packed, "w1 w2 w3", "-n", 8) == first
    assert run(capsys, "generate", packed, "w1 w2 w3", "-n", 8, "--temperature", 1.0, "--seed", 3) != first


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("verify", "missing.arb"), "missing.arb"),
        (("inspect", "missing.arb"), "missing.arb"),
        (("eval", "missing.arb", "--text", "t.txt"), "missing.arb"),
        (("quantize", "missing-folder", "out.arb"), "missing-folder"),
    ],
)
def test_missing_input_is_one_line(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = attempt(capsys, *args)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_quantize_refuses_to_overwrite(capsys, folder, packed):
    before = packed.read_bytes()
    code, _, err = attempt(capsys, "quantize", folder, packed, "--calib", folder / "text.txt")
    assert code == 1
    assert "--overwrite" in err
    assert packed.read_bytes() == before


def test_quantize_wants_a_name_it_will_know_again(capsys, folder, tmp_path):
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "model.bin")
    assert code == 1
    assert "model.arb" in err


def test_windows_longer_than_the_context_are_refused_at_once(capsys, folder, tmp_path):
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "o.arb", "--seqlen", 512)
    assert code == 1
    assert "context of 64" in err
    assert "loaded whole" not in err


def test_interrupted_quantize_says_how_to_go_on(capsys, folder, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("arbllm_kernels.pipeline.quantize_checkpoint", interrupt)
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "o.arb")
    assert code == 130
    assert "--resume" in err


def test_more_tokens_than_the_context_are_refused(capsys, packed):
    code, _, err = attempt(capsys, "generate", packed, "w1 w2 w3", "-n", 100)
    assert code == 1
    assert "at most 61" in err


@pytest.mark.parametrize(("option", "value"), [("--method", "arb-y"), ("--groups", 3), ("--block-size", 0)])
def test_bad_knobs_name_the_knob(capsys, folder, tmp_path, option, value):
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "o.arb", option, value)
    assert code == 1
    assert option.lstrip("-").replace("-", "_") in err


def test_convert_and_load_check(capsys, packed, tmp_path):
    run(capsys, "convert", packed, tmp_path / "folder", "--perplexity", "text=12.5", "--base-model", "org/dense")
    assert "text | 12.50" in (tmp_path / "folder" / "README.md").read_text()
    found = run(capsys, "load-check", tmp_path / "folder")
    assert (
        "LlamaForCausalLM, 14 packed weights" in found
        and found.split(":")[1] == run(capsys, "load-check", packed).split(":")[1]
    )
    run(capsys, "convert", tmp_path / "folder", tmp_path / "again.arb")
    assert (tmp_path / "again.arb").read_bytes() == packed.read_bytes()
    weights = tmp_path / "folder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights)
    code, _, err = attempt(capsys, "load-check", tmp_path / "folder")
    assert code == 1 and "model.norm.weight" in err
    code, _, err = attempt(capsys, "convert", packed, tmp_path / "other", "--perplexity", "text")
    assert code == 1 and "NAME=VALUE" in err


def test_chat(capsys, packed, tmp_path, monkeypatch):
    seen = []

    def stream(model, tokenizer, messages, *arguments):
        seen.append([dict(message) for message in messages])
        yield from ("some ", "thing")

    monkeypatch.setattr("arbllm_kernels.evaluate.generate_stream", stream)
    monkeypatch.setattr("sys.stdin", io.StringIO("w1\nw2\n/clear\nw3\n\nw4\n"))
    assert run(capsys, "chat", packed, "--system", "w9") == "some thing\n" * 3
    first, second, third = ([message["content"] for message in messages] for messages in seen)
    assert first == ["w9", "w1"] and second == ["w9", "w1", "some thing", "w2"] and third == ["w9", "w3"]
    assert [message["role"] for message in seen[1]] == ["system", "user", "assistant", "user"]


def test_chat_streams_and_survives_a_full_context(capsys, packed, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("w1\nw2 w3\n"))
    assert len(run(capsys, "chat", packed, "-n", 4, "--temperature", 0).splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 " * 70 + "\nw2\n"))
    code, out, err = attempt(capsys, "chat", packed, "-n", 4)
    assert code == 0 and "/clear" in err and len(out.splitlines()) == 1


def test_chat_needs_a_template(capsys, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    arb.save(tiny.pack_linears(tiny.llama()), tmp_path / "m.arb", tokenizer)
    code, _, err = attempt(capsys, "chat", tmp_path / "m.arb")
    assert code == 1 and "no chat template" in err and "arbllm generate" in err


@pytest.mark.parametrize("command", sorted(get_command(cli.app).commands))
def test_help_has_an_example(capsys, command):
    assert f"arbllm {command} " in run(capsys, command, "--help")


def test_presets(capsys, folder, tmp_path):
    out = tmp_path / "compact.arb"
    options = ["--calib", folder / "text.txt", "--samples", "2", "--seqlen", "32", "--preset", "compact"]
    printed = run(capsys, "quantize", folder, out, *options, "--block-size", "64")
    assert "ARB-levels, 2.3 bits" in printed
    report = json.loads(run(capsys, "inspect", out, "--json"))
    assert {weight["method"] for weight in report["weights"]} == {"arb-levels"}
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "no.arb", "--preset", "tiny")
    assert code == 1 and "must be one of paper, best, compact" in err
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "no.arb", "--preset", "paper", "--bits", "2.3")
    assert code == 1 and "only method 'arb-levels' meets a target" in err
    code, _, err = attempt(capsys, "quantize", folder, tmp_path / "no.arb", "--preset", "best", "--method", "arb-rc")
    assert code == 1 and "--preset best and --method arb-rc do not go together" in err


def test_tune_and_quantize_with_tune_give_the_same_file(capsys, folder, packed, tmp_path, monkeypatch):
    text = ["--calib", folder / "text.txt", "--samples", "4", "--seqlen", "32"]
    printed = run(capsys, "tune", packed, tmp_path / "tuned.arb", "--dense", folder, *text)
    assert "scales tuned" in printed and "nats per token" in printed
    options = [folder, tmp_path / "both.arb", *text, "--block-size", "32", "--tune"]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("arbllm_kernels.tuning.tune_model", interrupt)
        code, _, err = attempt(capsys, "quantize", *options)
    assert code == 130 and "--resume" in err
    assert (tmp_path / "both.arb").read_bytes() == packed.read_bytes()
    assert "scales tuned" in run(capsys, "quantize", *options, "--resume")
    assert (tmp_path / "both.arb").read_bytes() == (tmp_path / "tuned.arb").read_bytes()
    code, _, err = attempt(capsys, "tune", packed, tmp_path / "no.arb", "--dense", folder, *text, "--rate", "2")
    assert code == 1 and "rate = 2.0" in err


@pytest.mark.parametrize(
    ("preset", "method", "expected"),
    [
        (None, None, QuantConfig.preset("best")),
        ("paper", None, QuantConfig()),
        ("paper", "arb-x", QuantConfig()),
        (None, "arb-rc", QuantConfig()),
        (None, "arb-levels", QuantConfig.preset("best")),
        ("compact", "arb-levels", QuantConfig.preset("compact")),
    ],
)
def test_what_the_other_options_change(preset, method, expected):
    assert core._start(preset, method) == expected
