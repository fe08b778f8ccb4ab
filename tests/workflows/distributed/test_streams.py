from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from workflows.distributed.streams import _settle, committed_rows


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
