"""docs/serving.md's server: started as printed, asked as printed and with a stream, stopped."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

import arbllm_kernels as arb

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra serve brings it)")
pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
(SERVE,) = re.findall(r"^python (-c .* serve .*)$", PAGE, re.MULTILINE)
(CHAT,) = re.findall(r"^transformers (chat .*)$", PAGE, re.MULTILINE)
(CURL,) = re.findall(r"^(curl .*\\\n.*)$", PAGE, re.MULTILINE)
START_SECONDS = 300  # of a machine busy with other tests; a free one needs ten


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The port and the working folder of a server of ./packed."""
    folder = tmp_path_factory.mktemp("serve")
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "w126"
    arb.save_folder(tiny.pack_linears(tiny.llama()), folder / "packed", tokenizer)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    log = folder / "log.txt"
    with log.open("w") as out:
        command = [sys.executable, *shlex.split(SERVE.replace("8000", port))]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(process, port, log)
        yield port, folder
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(process: subprocess.Popen[bytes], port: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def test_the_question_as_printed(server: tuple[str, Path]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port, folder = server
    command = shlex.split(CURL.replace("8000", port).replace("\\\n", ""))
    asked = subprocess.run([*command, "--silent"], cwd=folder, capture_output=True, text=True, check=True)
    answer = json.loads(asked.stdout)
    assert answer["choices"][0]["message"]["role"] == "assistant", answer
    assert answer["usage"]["completion_tokens"] >= 1 and answer["choices"][0]["message"]["content"].strip()


def test_transformers_chat(server: tuple[str, Path]) -> None:
    port, folder = server
    command = [sys.executable, "-m", "transformers.cli.transformers", *shlex.split(CHAT.replace("8000", port))]
    talk = subprocess.run(command, cwd=folder, input="w1 w2 w3\n!exit\n", capture_output=True, text=True, check=False)
    answer = talk.stdout.rpartition("<./packed>:")[2].split()
    assert answer and answer[0].startswith("w"), talk.stdout + talk.stderr


def test_a_streamed_answer_is_the_whole_one(server: tuple[str, Path]) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://localhost:{server[0]}/v1", api_key="none")
    question = {"model": "./packed", "messages": [{"role": "user", "content": "w1 w2 w3"}], "max_tokens": 6}
    whole = client.chat.completions.create(**question, temperature=0.0)
    pieces = client.chat.completions.create(**question, temperature=0.0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
    assert text.strip() and text == whole.choices[0].message.content
