"""The table of docs/reliability.md is that of the tries that were written; what is lost or stands twice is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import faults

REPOSITORY = Path(__file__).parents[2]
TRIES = REPOSITORY / "benchmarks" / "faults.json"
TRY = {
    "fault": "driver",
    "state": "passed",
    "rows_before": 10,
    "rows_after": 10,
    "lost": 0,
    "twice": 0,
    "longest_wait_s": 3.0,
}


def test_the_page_shows_the_tries_that_were_written() -> None:
    assert faults.table(json.loads(TRIES.read_text())) in (REPOSITORY / "docs" / "reliability.md").read_text()


def test_a_fault_that_was_not_tried_has_no_row_and_one_that_was_missed_counts_nothing() -> None:
    missed = {**TRY, "state": "missed"}
    failed = {**TRY, "state": "failed", "rows_after": 8, "lost": 2, "longest_wait_s": 120.5}
    _, _, row = faults.table([TRY, missed, failed, {**missed, "fault": "head"}]).splitlines()
    assert row.endswith("| 2 | 1 | 20 | 18 | 2 | 0 | 120.5 |")


def test_rows_are_counted_in_whatever_files_they_stand(tmp_path: Path) -> None:
    for run, files in {"one": [["a", "b", "c"]], "other": [["c", "c"], ["b"]]}.items():
        (tmp_path / run / "items").mkdir(parents=True)
        for number, ids in enumerate(files):
            pq.write_table(pa.table({"item_id": ids}), tmp_path / run / "items" / f"{number}.parquet")
    before, after = faults.rows_of(tmp_path / "one"), faults.rows_of(tmp_path / "other")
    assert (before - after).total() == 1  # a is lost
    assert (after - before).total() == 1  # c stands twice
