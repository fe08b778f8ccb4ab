from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.base import set_columns, with_outcome
from storage import files, sorting
from storage.run import RunDir
from workflows.distributed.streams import _settle, committed_rows, write_rejects


def test_only_marks_that_are_committed_and_still_there_count(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    known: dict[str, int] = {}
    assert committed_rows(str(tmp_path), known) == 0
    pq.write_table(pa.table({"item_id": ["a", "b"]}), marks / "x_000000.pending.parquet")
    assert committed_rows(str(tmp_path), known) == 0
    (marks / "x_000000.pending.parquet").rename(marks / "x_000000.parquet")
    pq.write_table(pa.table({"item_id": ["c"]}), marks / "x_000001.parquet")
    (marks / "x_000002.parquet").write_bytes(b"half writ")
    assert committed_rows(str(tmp_path), known) == 3
    (marks / "x_000001.parquet").unlink()
    assert committed_rows(str(tmp_path), known) == committed_rows(str(tmp_path)) == 2


def test_a_writer_killed_between_the_copy_and_the_removal_of_its_mark_has_committed(s3):
    """In an object store; Ray would remove the rows of every pending mark, and take those of the other for written."""
    sink = f"{s3.bucket('marks')}/sink"
    for name in ("x_0.pending", "x_0", "x_1.pending", "x_2"):
        files.write_part(f"{sink}/marks/{name}.parquet", pa.table({"item_id": [name]}))
    _settle(sink)
    assert files.parts(f"{sink}/marks") == [f"{sink}/marks/{name}.parquet" for name in ("x_0", "x_1.pending", "x_2")]
    assert committed_rows(sink) == 2
    _settle(f"{sink}-that-is-not-there")


def test_issues_are_written_in_parts_in_an_order_of_their_own(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 90 rows, every third is rejected with two issues and every third is kept with one."""
    monkeypatch.setattr(sorting, "PART_ROWS", 10)
    table = with_outcome(pa.table({"item_id": [f"{n:02}" for n in range(90)]}))
    degraded = [{"severity": "degraded", "code": "missing", "detail": "x"}]
    rejected = [*degraded, {"severity": "rejected", "code": "bare", "detail": "y"}]
    issues = pa.array([rejected, degraded, []] * 30, table.schema.field("issues").type)
    found = []
    for name, order in (("one", list(range(90))), ("other", list(range(89, -1, -1)))):
        sink = tmp_path / name
        for outcome, kinds in (("kept", (1, 2)), ("rejected", (0,))):
            rows = set_columns(table, {"issues": issues}).take([n for n in order if n % 3 in kinds])
            files.write_part(str(sink / "rows" / f"outcome={outcome}" / "a.parquet"), rows.drop_columns("outcome"))
        run = RunDir(str(tmp_path / f"run {name}"))
        assert write_rejects(str(sink), run, "interpret", 90) == (30, 30, {"bare": 30, "missing": 60})
        assert len(files.parts(run.uri("rejects", "interpret"))) == 9
        found.append(pl.DataFrame(run.read_table("rejects", "interpret")))
    assert found[0].equals(found[1])
    assert found[0].height == 90
    assert set(found[0]["stage"]) == {"interpret"}
