"""Gather the small files of a stream into few larger ones, rows in the order of their ids' hash.

Actors finish in any order; after this step the files of two runs are equal, and later stages can stream them as they
are.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage import files
from storage.hashing import hash_order, hash_strings

PART_ROWS = 16_384


def write_in_hash_order(batches: Iterable[pa.RecordBatch], target: str, rows: int, schema: pa.Schema) -> int:
    """Replaces the Parquet folder `target` by the batches' rows; return their number.

    An external bucket sort: rows are dealt to files by the upper bits of their hash, then each file is sorted, so that
    memory holds one part and not the catalogue.

    Args:
        batches: with a column `item_id`.
        target: URI of the folder.
        rows: how many to expect, which sets the number of parts.
        schema: of the files; batches are cast to it.
    """
    files.remove(target)
    parts = max(1, math.ceil(rows / PART_ROWS))
    written = 0
    with tempfile.TemporaryDirectory(prefix="tesserec-") as scratch:
        buckets = [Path(scratch) / f"{part:05d}.arrow" for part in range(parts)]
        writers = [pa.ipc.new_stream(str(bucket), schema) for bucket in buckets]
        for batch in batches:
            hashes = hash_strings(batch["item_id"])
            owner = (hashes >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)
            for part in np.unique(owner):
                chosen = batch.filter(pa.array(owner == part))
                writers[int(part)].write_table(pa.Table.from_batches([chosen]).select(schema.names).cast(schema))
        for writer in writers:
            writer.close()
        for part, bucket in enumerate(buckets):
            with pa.OSFile(str(bucket)) as source:
                table = pa.ipc.open_stream(source).read_all()
            table = table.take(hash_order(table["item_id"]))
            files.write_part(files.part_uri(target, part), table)
            written += table.num_rows
    return written
