"""The kernels as compiled are not worse than the checked-in table says: spills, registers, shared memory, SASS.

A kernel whose Triton IR is the table's has the table's figures; one that changed is compiled for every target here, and
fails until bench/aot.py has written it down.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import triton

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
import aot

TABLE = json.loads(aot.TABLE.read_text())
AGAIN = [("gemv_kernel batch 1", 90), ("add_parts preset, batch 1", 120)]  # compiled whether they changed or not


same_triton = pytest.mark.skipif(
    triton.__version__ != TABLE["triton"], reason=f"the table is Triton {TABLE['triton']}'s"
)


@same_triton
def test_every_kernel_against_the_table():
    assert aot.compare(AGAIN) == []


@same_triton
def test_that_a_changed_kernel_is_noticed(monkeypatch, tmp_path):
    name, kernel, args, options = next(launch for launch in aot.recorded() if launch[1].__name__ == "rank_columns")
    assert aot.digest(kernel, args, options) == TABLE["digests"][name]
    assert aot.digest(kernel, args, {**options, "CHUNK": 32}) != TABLE["digests"][name]
    (tmp_path / "aot.json").write_text(json.dumps({**TABLE, "digests": {**TABLE["digests"], name: "other"}}))
    monkeypatch.setattr(aot, "TABLE", tmp_path / "aot.json")
    monkeypatch.setattr(aot, "recorded", lambda: [(name, kernel, args, options)])
    assert aot.compare() == [f"{name}: the table is of other sources; run bench/aot.py"]


def test_the_table_covers_every_kernel_and_target_and_holds_no_spills():
    names = [name for name, *_ in aot.recorded()]
    assert {(row["kernel"], row["arch"]) for row in TABLE["rows"]} == {(n, a) for n in names for a in aot.TARGETS}
    assert set(TABLE["digests"]) == set(names)
    assert {name for name, _ in AGAIN} <= set(names)
    assert [p for row in TABLE["rows"] for p in aot.problems(row, row)] == []
    assert aot.PAGE.read_text() == aot.page(TABLE["rows"], TABLE["triton"])


def test_that_worse_is_noticed():
    row = TABLE["rows"][0]
    assert aot.problems({**row, "spills": 3}, row) == [f"{row['kernel']}, sm_{row['arch']}: 3 spills"]
    assert "occupancy" in aot.problems({**row, "occupancy": row["occupancy"] / 2}, row)[0]
    assert "loop" in aot.problems({**row, "loop": 2 * row["loop"]}, row)[0]
    assert "registers" in aot.problems({**row, "registers": row["registers"] + 8}, row)[0]
    assert "not in aot.json" in aot.problems(row, None)[0]
    assert "shared memory" in aot.problems({**row, "shared": 1 << 20}, row)[0]
