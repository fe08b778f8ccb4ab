"""Reading and writing at any fsspec URI: whole files atomically, Parquet tables as folders of parts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from storage.errors import UserError

PART_ROWS = 65_536  # of a folder of Parquet parts
WHOLE = {"s3", "gs", "abfs", "memory"}  # stores in which an object appears whole or not at all
KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else your store reads, to keys that may"


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of a URI and the path inside it; a plain path is local.

    Listings are never remembered, for other processes write, too.

    Raises:
        UserError: the scheme is unknown or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UserError(f"Cannot open {uri!r}: {error}.") from error


def join(uri: str, *parts: str) -> str:
    """Appends path parts to a URI.

    >>> join("s3://bucket/run/", "items", "part-0.parquet")
    's3://bucket/run/items/part-0.parquet'
    """
    return "/".join([uri.rstrip("/") or "/", *parts])


def absolute(uri: str) -> str:
    """A plain path made absolute, a leading `~` being the home folder as in `filesystem`; another URI as it is.

    One place has one name: slashes at the end go.

    >>> absolute("s3://bucket/run/")
    's3://bucket/run'
    """
    if "://" not in uri:
        return str(Path(os.path.expanduser(uri)).absolute())  # noqa: PTH111 - `~nobody` stays
    scheme, _, place = uri.partition("://")
    return f"{scheme}://{place.rstrip('/') or place[:1]}"


def exists(uri: str) -> bool:
    """Tells whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def probe(uri: str, *, write: bool = False) -> None:
    """Asks a store for a folder, so that what it refuses is told before any work; nothing there is fine.

    Args:
        uri: of the folder.
        write: whether it is to be written; an object is written to a remote one, and removed.

    Raises:
        UserError: the store does not answer, has no such bucket, or refuses to read or to write with these keys; or a
            local folder cannot be written or made.
    """
    fs, path = filesystem(uri)
    if "file" in fs.protocol:
        if write and not writable(uri):
            raise UserError(f"{uri} cannot be written: name another place, or make this one writable.")
        return
    place, does = "/".join(uri.split("/", 3)[:3]), "read"
    try:
        try:
            fs.ls(path)
        except FileNotFoundError as error:  # of a bucket, or of a folder, which is fine
            if "NoSuchBucket" in str(error.__cause__):
                raise
        if write:
            does, trial = "write", join(uri, f".{uuid.uuid4().hex}.tmp")
            write_bytes(trial, b"")
            remove(trial)
    except Exception as error:  # object stores raise what they like
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise UserError(f"There is no bucket {place}: make it, or name another.") from error
        if isinstance(error, PermissionError) or "credentials" in said:
            raise UserError(f"{place} refuses to {does} {uri} ({said}): {KEYS} {does} there.") from error
        raise UserError(f"{place} does not answer ({said}): check its address, such as AWS_ENDPOINT_URL.") from error


def writable(uri: str) -> bool:
    """Tells whether a local folder can be written or made; of remote ones `probe` tells, so they pass."""
    fs, path = filesystem(uri)
    if "file" not in fs.protocol:
        return True
    nearest = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def remove(uri: str) -> None:
    """Removes a file or a folder with all it holds; nothing there is fine."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def copy(uri: str, target: str) -> None:
    """Copies a folder with all it holds within one file system, in place of what is at the target."""
    remove(target)
    fs, path = filesystem(uri)
    for name in fs.find(path):
        write_bytes(join(target, name[len(path) + 1 :]), fs.cat_file(name))


def size(uri: str) -> int:
    """Returns the number of bytes of a file."""
    fs, path = filesystem(uri)
    return int(fs.size(path))


def read_bytes(uri: str) -> bytes:
    """Returns the content of a file."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


@contextlib.contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading; what gzip has compressed is unpacked where its name ends in `.gz`."""
    fs, path = filesystem(uri)
    with fs.open(path, "rb", compression="gzip" if path.endswith(".gz") else None) as stream:
        yield stream


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file atomically: readers see the old content or the new, never a part.

    A temporary sibling is moved over the target; object stores need none.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; names it, and no sibling is left.
    """
    fs, path = filesystem(uri)
    if not WHOLE.isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        fs.pipe_file(path, content)
        return
    parent = fs._parent(path)
    temporary = f"{parent}/.{uuid.uuid4().hex}.tmp"
    try:
        fs.makedirs(parent, exist_ok=True)
        fs.pipe_file(temporary, content)
        fs.mv(temporary, path)
    except BaseException as error:
        with contextlib.suppress(Exception):  # of a store's own kind; it must not hide the first one
            fs.rm_file(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk does not say for which file
            raise OSError(error.errno, error.strerror, path) from error
        raise


def read_json(uri: str) -> Any:
    """Parses a JSON file."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Writes a value as indented JSON, atomically; numbers that JSON does not have (NaN, infinity) become null."""
    write_bytes(uri, (json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def as_read(value: Any) -> Any:
    """Returns a value as `read_json` gives it back after `write_json`: NaN and infinity as None, tuples as lists."""
    return json.loads(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def dataset(uri: str) -> pyarrow.dataset.Dataset:
    """A lazy Arrow dataset over a Parquet file or a folder of parts."""
    fs, path = filesystem(uri)
    return pyarrow.dataset.dataset(path, filesystem=fs, format="parquet")


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file or folder as one table, rows in the order of the parts' names."""
    return dataset(uri).to_table(columns=columns)


def parts(uri: str) -> list[str]:
    """Returns the URIs of the Parquet files of a folder, in the order of their names."""
    fs, path = filesystem(uri)
    return [
        join(uri, name.rsplit("/", 1)[-1]) for name in sorted(fs.ls(path, detail=False)) if name.endswith(".parquet")
    ]


def signature(uri: str) -> tuple[str, ...]:
    """Returns what tells one state of a file, or of a folder of files, from another: sizes, times of change, tags."""
    fs, path = filesystem(uri)
    return tuple(f"{name}:{fs.ukey(name)}" for name in sorted(fs.find(path)))


def batches(uri: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Yields columns of a table in batches of at most so many rows, in order, and reads hardly ahead."""
    yield from dataset(uri).to_batches(columns=columns, batch_size=rows, batch_readahead=1, fragment_readahead=1)


def read_range(uri: str, start: int, stop: int, columns: list[str]) -> pa.Table:
    """Returns columns of the rows from `start` up to `stop`, reading only the parts that hold them."""
    source, first = dataset(uri), 0
    found = [source.head(0, columns=columns)]
    for part in source.get_fragments():
        rows = part.count_rows()  # from its footer
        if first < stop and start < first + rows:
            begin = max(start - first, 0)
            found.append(part.to_table(columns=columns).slice(begin, stop - first - begin))
        first += rows
    return pa.concat_tables(found)


def write_table(uri: str, table: pa.Table, *, part_rows: int = PART_ROWS) -> None:
    """Replaces a folder of Parquet parts by a table; see `write_parts`."""
    write_parts(uri, [table], part_rows=part_rows)


def write_parts(uri: str, tables: Iterable[pa.Table], *, part_rows: int = PART_ROWS) -> int:
    """Replaces a folder of Parquet parts by the rows of tables, holding about one part; returns their number.

    Each part appears whole or not at all. The folder as a whole counts as written once its stage is complete in
    the manifest, which is why readers look there first.
    """
    remove(uri)
    held, part, rows = pa.table({}), 0, 0
    for table in tables:
        rows += table.num_rows
        held = pa.concat_tables([held, table]) if held.num_rows else table
        while held.num_rows > part_rows:
            write_part(part_uri(uri, part), held.slice(0, part_rows))
            held, part = held.slice(part_rows), part + 1
    write_part(part_uri(uri, part), held)
    return rows


def part_uri(uri: str, number: int) -> str:
    """Returns the URI of a part of a folder."""
    return join(uri, f"part-{number:05d}.parquet")


def write_part(uri: str, table: pa.Table) -> None:
    """Writes one Parquet file atomically."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(uri, buffer.getvalue().to_pybytes())
