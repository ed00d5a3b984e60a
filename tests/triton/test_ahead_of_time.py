"""The kernels as compiled for sm_90 are not worse than the checked-in table says: spills, shared memory, SASS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import triton

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
import aot

TABLE = json.loads(aot.TABLE.read_text())
CHECKED = ("arb_fit arb-x", "gemv_kernel batch 1")  # compiling all takes minutes: bench/aot.py --check


@pytest.mark.skipif(triton.__version__ != TABLE["triton"], reason=f"the table is Triton {TABLE['triton']}'s")
def test_a_few_kernels_against_the_table():
    assert aot.compare(90, CHECKED) == []


def test_the_table_covers_every_kernel_and_target_and_holds_no_spills():
    names = [name for name, *_ in aot.recorded()]
    assert {(row["kernel"], row["arch"]) for row in TABLE["rows"]} == {(n, a) for n in names for a in aot.TARGETS}
    assert set(CHECKED) <= set(names)
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
