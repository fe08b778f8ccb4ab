from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.distributed.streams import committed_rows


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
