from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import exchange, files

PIECES = 3


@given(st.lists(st.lists(st.integers(0, PIECES - 1), max_size=9), min_size=1, max_size=4))
def test_every_piece_gets_its_rows_in_the_order_of_their_makers(dealt: list[list[int]]) -> None:
    uris, rows = [], []
    for maker, pieces in enumerate(dealt):
        own = [f"{maker}-{row}" for row in range(len(pieces))]
        uris.append(f"memory://exchange/{maker}.arrow")
        table = pa.table({"row": pa.array(own, pa.string()), "list": pa.array([[1]] * len(own), pa.list_(pa.int64()))})
        exchange.deal(uris[-1], table, np.array(pieces, np.int64), PIECES)
        rows += zip(pieces, own, strict=True)
    for number in range(PIECES):
        found = exchange.collect(uris, number)
        assert found["row"].to_pylist() == [row for piece, row in rows if piece == number]
        assert found["list"].to_pylist() == [[1]] * found.num_rows


def test_a_table_of_many_chunks_is_dealt(tmp_path: Path) -> None:
    table = pa.concat_tables([pa.table({"n": [1, 2]}), pa.table({"n": [3]})])
    uri = str(tmp_path / "one" / "file.arrow")
    exchange.deal(uri, table, np.array([1, 0, 1]), 2)
    assert [exchange.collect([uri], number)["n"].to_pylist() for number in (0, 1)] == [[2], [1, 3]]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        exchange.deal(str(tmp_path / "file.arrow"), pa.table({"n": [1]}), np.array([0]), 1)
    assert list(tmp_path.iterdir()) == []
