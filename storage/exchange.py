"""Rows on their way from the pieces that made them to the pieces that need them: one file per maker, one batch each.

A file is an Arrow IPC file whose batch number n holds the rows for piece n. Whoever needs piece n reads that batch
alone, of every file, in the order of the makers, so that the rows come in the same order whatever finished first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from storage import files

OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def deal(uri: str, table: pa.Table, piece: np.ndarray | None = None, pieces: int = 1) -> None:
    """Writes a table's rows, dealt to pieces, atomically; rows of one piece keep their order.

    Args:
        uri: of the file.
        table: the rows.
        piece: number of the piece that each row goes to, integers [rows] below `pieces`; None: all go to the only one.
        pieces: how many there are.
    """
    rows = pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
    ends = np.array([rows.num_rows])
    if piece is not None:
        rows = rows.take(pa.array(np.argsort(piece, kind="stable")))
        ends = np.cumsum(np.bincount(piece, minlength=pieces))
    buffer, start = pa.BufferOutputStream(), 0
    with pa.ipc.new_file(buffer, rows.schema, options=OPTIONS) as writer:
        for end in ends:
            writer.write_batch(rows.slice(start, end - start))
            start = end
    files.write_bytes(uri, buffer.getvalue().to_pybytes())


def collect(uris: Iterable[str], number: int = 0) -> pa.Table:
    """Returns the rows of one piece out of several files, in their order."""
    batches = []
    for uri in uris:
        with _opened(uri) as reader:
            batches.append(reader.get_batch(number))
    return pa.Table.from_batches(batches)


@contextmanager
def _opened(uri: str) -> Iterator[pa.ipc.RecordBatchFileReader]:
    fs, path = files.filesystem(uri)
    # One piece is read of many: a read-ahead of megabytes would fetch those of others with it, for each reader anew.
    with pa.memory_map(path) if "file" in fs.protocol else fs.open(path, "rb", cache_type="none") as source:
        yield pa.ipc.open_file(source)
