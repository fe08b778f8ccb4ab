"""Catalogue-sized tables as Arrow files that every process of a node maps: one copy in the page cache, none in memory.

A file holds one record batch, so that a column is one array whose values a tensor can share. It is made by whoever
needs it first, in bounded memory, and stands in the run's checkpoints, or in the user's folder among the node's
temporary files where the run is not on a local disk, or cannot be written. Who makes one there removes those of other
runs that are older than a day: processes that have mapped them keep them, and others make them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage import files
from storage.errors import UserError
from storage.hashing import fingerprint
from storage.run import RunDir

BATCH_ROWS = 16_384
OTHERS_SECONDS = 86_400  # that tables of other runs stay in a folder of temporary files
LONGEST = 2**31 - 1  # of all lists or strings of a column together; their offsets have 32 bits


def map_columns(run: RunDir, *parts: str, columns: Sequence[str]) -> pa.Table:
    """Returns columns, without NULL, of one of a run's Parquet folders as a mapped table of one chunk."""
    uri, names = run.uri(*parts), list(columns)
    schema = pa.schema([files.dataset(uri).schema.field(name) for name in names])
    about = [*names, *files.signature(uri)]
    return map_table(run, "-".join(parts), about, schema, lambda: files.batches(uri, names, BATCH_ROWS))


def map_table(
    run: RunDir, name: str, about: Sequence[str], schema: pa.Schema, batches: Callable[[], Iterable[pa.RecordBatch]]
) -> pa.Table:
    """Returns a table that is made once per node, mapped; one chunk.

    Args:
        run: that the table is of.
        name: of its file.
        about: what the table is made of; another table takes its place when this changes.
        schema: numbers, strings, lists and fixed-size lists of numbers.
        batches: makes the table.

    Raises:
        ValueError: a value is NULL.
        UserError: lists or strings are too long for one batch.
    """
    fs, root = files.filesystem(run.root)
    here = "file" in fs.protocol and files.writable(run.root)
    folder = Path(root) / "checkpoints" if here else Path(tempfile.gettempdir()) / f"tesserec-{os.getuid()}"
    folder = folder / "maps" / fingerprint(run.root)[:16]
    path = folder / f"{name}.{fingerprint(' '.join(about))[:16]}.arrow"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, name) as scratch:
            if not path.exists():  # another process may have made it by now
                temporary = str(scratch / "table.arrow")
                _write(temporary, schema, batches())
                os.replace(temporary, path)  # noqa: PTH105 - atomic
                _remove_old(folder, name, path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:  # another process has removed it just now
        return map_table(run, name, about, schema, batches)
    assert all(column.num_chunks == 1 for column in table.columns)  # noqa: S101 - what this file is for
    return table


def _remove_old(folder: Path, name: str, path: Path) -> None:
    """Removes tables that the one at `path` replaces, and old ones of other runs; who has mapped them keeps them."""
    for old in set(folder.glob(f"{name}.*.arrow")) - {path}:
        old.unlink(missing_ok=True)
    for other in folder.parent.glob("*/*.arrow"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it, too
            if other.parent != folder and time.time() - other.stat().st_mtime > OTHERS_SECONDS:
                other.unlink()


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[Path]:
    """Yields a folder to make a table in; of a host, one process at a time makes those of one name.

    What processes have left that were killed is removed: the system takes their locks back. On a shared disk a lock may
    hold for its host alone, so each host has folders of its own.
    """
    mine = f"{name}.{os.uname().nodename}."
    with (folder / f"{name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob(f"{mine}*"):
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=mine, dir=folder) as scratch:
            yield Path(scratch)


def _write(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    spools, rows = [_Spool(f"{path}.{number}", field.type) for number, field in enumerate(schema)], 0
    for batch in batches:
        rows += batch.num_rows
        for spool, name in zip(spools, schema.names, strict=True):
            spool.add(batch[name])
    batch = pa.RecordBatch.from_arrays([spool.array(rows) for spool in spools], schema=schema)
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(batch)


class _Spool:
    """One column on its way to one array: its values, and the offsets of lists and strings, in files of their own."""

    def __init__(self, path: str, kind: pa.DataType) -> None:
        self._kind, self._length = kind, 0
        self._jagged = pa.types.is_list(kind) or pa.types.is_string(kind)
        self._paths = [f"{path}.{name}" for name in ("values", "offsets")]
        self._values, self._offsets = (Path(name).open("wb") for name in self._paths)  # noqa: SIM115 - see `array`
        self._offsets.write(bytes(4))

    def add(self, array: pa.Array) -> None:
        if array.null_count:
            raise ValueError(f"{array.null_count} values of a mapped column are NULL")
        if not self._jagged:
            values = array.flatten() if pa.types.is_fixed_size_list(self._kind) else array
            self._values.write(values.to_numpy())
            return
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: len(array) + 1].astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        if self._length + last - first > LONGEST:
            raise UserError(
                f"The items are too many: the lists or texts of a column of all items hold {LONGEST:,} values at most; "
                "lower what an item has of them, such as tokens and their hashes."
            )
        self._offsets.write((offsets[1:] + (self._length - first)).astype(np.int32).tobytes())
        self._length += last - first
        if pa.types.is_string(self._kind):
            self._values.write(memoryview(array.buffers()[2] or b"")[first:last])
        else:
            self._values.write(array.values.slice(first, last - first).to_numpy())

    def array(self, rows: int) -> pa.Array:
        for stream in (self._values, self._offsets):
            stream.close()
        values, offsets = (
            pa.memory_map(path).read_buffer() if Path(path).stat().st_size else pa.py_buffer(b"")
            for path in self._paths
        )
        if pa.types.is_string(self._kind):
            return pa.Array.from_buffers(self._kind, rows, [None, offsets, values])
        if pa.types.is_primitive(self._kind):
            return pa.Array.from_buffers(self._kind, rows, [None, values])
        inner = self._kind.value_type
        child = pa.Array.from_buffers(inner, values.size * 8 // inner.bit_width, [None, values])
        return pa.Array.from_buffers(self._kind, rows, [None, offsets] if self._jagged else [None], children=[child])
