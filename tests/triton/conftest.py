"""Runs every file of tests/triton/interpreted/ in a process of its own, under TRITON_INTERPRET=1, and reports it here.

Triton decides when a kernel is defined whether it is interpreted or compiled, so both cannot live in one process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.language", reason="triton is not installed")

INTERPRETED = Path(__file__).parent / "interpreted"
IN_CHILD = os.environ.get("TRITON_INTERPRET") == "1"
ChildRun = tuple[str, dict[str, list[pytest.TestReport]]]  # output, reports by test
RESULTS = pytest.StashKey[dict[Path, ChildRun]]()
LIMIT = 240.0  # seconds of processor time for all interpreted tests of a session
USED = pytest.StashKey[float]()
REPORTS = "ARBLLM_TEST_REPORTS"  # in the child: the file to write reports to, one JSON object per line


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written yet is NaN or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if REPORTS in os.environ:
        with Path(os.environ[REPORTS]).open("a") as lines:
            lines.write(json.dumps(report._to_json()) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if IN_CHILD or INTERPRETED not in item.path.parents:
        return None
    by_file = item.config.stash.setdefault(RESULTS, {})
    if item.path not in by_file:
        by_file[item.path] = _run_child(item)
    output, results = by_file[item.path]
    reports = results.get(item.nodeid)
    assert reports, f"{item.nodeid}: the interpreter process reported nothing:\n{output}"
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_child(item: pytest.Item) -> ChildRun:
    """Run the selected tests of the item's file."""
    nodes = [i.nodeid for i in item.session.items if i.path == item.path]
    file = item.config._tmp_path_factory.mktemp("interpreted") / "reports"
    arguments = file.with_name("nodes")
    arguments.write_text("\n".join(nodes))
    before = _children_seconds()
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{arguments}"],
        cwd=item.config.rootpath,
        env={**os.environ, "TRITON_INTERPRET": "1", REPORTS: str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    used = item.config.stash.get(USED, 0.0) + _children_seconds() - before
    item.config.stash[USED] = used
    assert used < LIMIT, f"interpreted tests took {used:.0f} s of processor time; they may take {LIMIT:.0f}"
    reports: dict[str, list[pytest.TestReport]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        report = pytest.TestReport._from_json(json.loads(line))
        reports.setdefault(report.nodeid, []).append(report)
    return run.stdout[-4000:] + run.stderr[-4000:], reports


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
