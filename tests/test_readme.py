"""The README's Python runs as printed, and its commands exist with the options it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from arbllm_kernels.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"^arbllm (\w+) (.*)$", README, re.MULTILINE)


def test_python_example():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    torch.testing.assert_close(
        names["layer"](torch.eye(512)).T, names["dense"], rtol=0, atol=1e-6 * float(names["dense"].abs().max())
    )
    assert 2.5 < names["packed"].bits_per_weight < 3.5


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (Path(__file__).parents[1] / link).exists()] == []


def test_there_are_commands():
    expected = {"quantize", "tune", "inspect", "verify", "eval", "generate", "report", "info"}
    assert {name for name, _ in COMMANDS} == expected


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_commands_and_options_exist(name, arguments):
    known = {option for parameter in get_command(app).commands[name].params for option in parameter.opts}
    shown = re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments.partition("#")[0])
    assert set(shown) <= known
