from __future__ import annotations

import pyarrow as pa
import pytest

from storage import files, sorting
from storage.hashing import hash_order

SCHEMA = pa.schema([("item_id", pa.string()), ("x", pa.int64())])


@pytest.mark.parametrize("rows", [0, 1, 37])
def test_rows_come_back_once_each_in_hash_order(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(sorting, "PART_ROWS", 10)
    ids = [f"i{n}" for n in range(rows)]
    table = pa.table({"item_id": ids, "x": list(range(rows))}, schema=SCHEMA)
    target = str(tmp_path / "out")

    assert sorting.write_in_hash_order(table.to_batches(max_chunksize=7), target, rows, SCHEMA) == rows

    found = files.read_table(target)
    assert found.equals(table.take(hash_order(ids)))


def test_order_of_arrival_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "PART_ROWS", 10)
    table = pa.table({"item_id": [f"i{n}" for n in range(50)], "x": list(range(50))}, schema=SCHEMA)
    backwards = table.take(list(range(49, -1, -1)))
    for name, source in (("a", table), ("b", backwards)):
        sorting.write_in_hash_order(source.to_batches(max_chunksize=8), str(tmp_path / name), 50, SCHEMA)
    for part in sorted(path.name for path in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()
