from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import blocks


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())])
def test_statistics_tell_which_lists_are_in_every_row(tmp_path: Path, kind: pa.DataType) -> None:
    uri, full = str(tmp_path / "items.parquet"), [[1.0, 2.0]] * 4
    table = pa.table({"full": pa.array(full, kind), "null": pa.array([*full[:3], None], kind), "n": range(4)})
    if not pa.types.is_fixed_size_list(kind):
        table = table.append_column("empty", pa.array([*full[:3], []], kind))
    pq.write_table(table, uri, row_group_size=2)
    assert blocks.complete(uri, ["full", "null", "empty", "absent"]) == {"full"}
    (tmp_path / "items.csv").write_text("full\n1\n")
    assert blocks.complete(str(tmp_path / "items.csv"), ["full"]) == set()
