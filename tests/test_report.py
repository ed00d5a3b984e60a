"""The report: its numbers against their definitions, its page complete in itself."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny
import torch
from architectures import token_ids
from test_cli import attempt, run

import arbllm_kernels as arb
from arbllm_kernels import plots, report
from arbllm_kernels.errors import InputError
from arbllm_kernels.pipeline import quantize_checkpoint

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
CFG = arb.QuantConfig(block_size=32, iters=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    tiny.llama().save_pretrained(path / "dense")
    quantize_checkpoint(path / "dense", path / "m.arb", CFG, token_ids(2))
    return path


def test_errors_are_their_definition(folder: Path) -> None:
    errors = {e.name: e for e in report.write_report(folder / "m.arb", folder / "m.html", base=str(folder / "dense"))}
    model, _ = arb.load(folder / "m.arb")
    for name, module in tiny.llama().named_modules():
        if name in errors:
            lost = (module.weight - model.get_submodule(name).dequantize()).norm() ** 2 / module.weight.norm() ** 2
            assert errors[name].error == pytest.approx(float(lost.detach()), rel=1e-5)
    found = errors["model.layers.1.mlp.up_proj"]
    assert (found.layer, found.kind) == (1, "up_proj") and len(errors) == 14


def test_the_page_is_complete_in_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "model.layers.1.mlp.up_proj:3"
    numbers = folder / "numbers.json"
    points = [{"method": m, "file_bytes": 1e6 * i, "perplexity": 30 - i} for i, m in enumerate(("A <b>", "B"), 1)]
    numbers.write_text(json.dumps([{"method": "fp32", "perplexity": 20.0, "bits": 32.0}, *points]))
    out = folder / "page.html"
    options = ("--base", folder / "dense", "--row", row, "--measurements", numbers, "--out", out)
    run(capsys, "report", folder / "m.arb", *options)
    page = out.read_text()
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert len(titles) == 8 and "Row 3 of model.layers.1.mlp.up_proj" in page
    images = re.findall('src="data:image/svg\\+xml;base64,([^"]+)"', page)
    assert len(images) == 7 and len(set(images)) == 7
    for image in images:
        assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")
    assert plots.parts_plot({"signs": 3}, "MB") == plots.parts_plot({"signs": 3}, "MB")


def test_a_dense_model_is_a_line_not_a_point(tmp_path: Path) -> None:
    (tmp_path / "fp32.json").write_text('{"method": "fp32", "perplexity": 24.0, "bits": 32.0}')
    (tmp_path / "arb.json").write_text('{"method": "ARB", "perplexity": 90, "file_bytes": 2e6}')
    points = [p for name in ("fp32", "arb") for p in report.read_measurements(tmp_path / f"{name}.json")]
    assert [(p.label, p.megabytes, p.perplexity) for p in points] == [("fp32", None, 24.0), ("ARB", 2.0, 90.0)]
    alone, both = (plots.perplexity_plot(some) for some in (points[1:], points))
    assert alone != both and plots.perplexity_plot(points[:1])


def test_without_a_base_only_sizes_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "report", folder / "m.arb")
    page = (folder / "m.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Where the bytes are", "Bits of a packed weight"] and "--base" in page


def test_convergence_falls_and_settles() -> None:
    errors, changes = report.convergence(torch.randn(8, 64), arb.QuantConfig(block_size=64, iters=12))
    assert len(errors) == len(changes) == 13
    assert errors[-1] < errors[0] and abs(errors[-1] - errors[-2]) < abs(errors[1] - errors[0])
    assert changes[0] == 0 and changes[-1] < changes[1]


def test_mistakes_get_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.llama()
    model.config.intermediate_size = 32
    type(model)(model.config).save_pretrained(tmp_path / "other")
    (tmp_path / "bad.json").write_text("{}")
    for arguments, message in [
        (("--base", tmp_path / "other"), "is it the base?"),
        (("--base", folder / "dense", "--row", "model.layers.0.mlp.up_proj:96"), "MODULE:INDEX"),
        (("--base", folder / "dense", "--row", "lm_head:0"), "MODULE:INDEX"),
        (("--measurements", tmp_path / "bad.json"), "bad.json: must hold method"),
    ]:
        code, _, err = attempt(capsys, "report", folder / "m.arb", "--out", tmp_path / "page.html", *arguments)
        assert code == 1 and message in err
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(InputError, match="must hold method"):
        report.read_measurements(tmp_path / "none.json")
