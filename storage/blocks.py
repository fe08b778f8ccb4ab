"""Reading tables block by block: one file, or a folder of files of one format, Parquet, CSV or JSON Lines.

A large table is read from several sources at once, and of none more than a block is held.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from storage import files, json_lines, text_tables
from storage.encodings import BLOCK_BYTES, LONGEST, SAMPLE_BYTES, read_utf8
from storage.errors import UserError

FORMATS = ("parquet", "csv", "jsonl")
SUFFIXES = tuple(f".{end}" for end in (*FORMATS, "csv.gz", "jsonl.gz"))
SOURCE_ROWS = 1 << 20  # of Parquet, about
BLOCK_ROWS = 1 << 17
UNPACKED = 8  # how many times its size a file has that is unpacked, about
FOREIGN = {  # by its first bytes, what a file is, and what to do
    b"PAR1\x15": "a Parquet file: give it the suffix .parquet",
    b"PK\x03\x04": "an Excel workbook or another ZIP archive: export its table as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: export its table as CSV",
    b"\x1f\x8b": "compressed with gzip: add .gz to its name, or unpack it",
}
START = 1 << 12  # bytes that tell what a file is
UNNAMED = r"|Unnamed: \d+(\.\d+)?|_c\d+|\.\.\.\d+|__index_level_\d+__"  # by a CSV, pandas, Spark, readr, Arrow


def visible(folder: str) -> list[dict[str, Any]]:
    """Returns the entries of a folder but for empty files and names that begin with `.` or `_`."""
    fs, path = files.filesystem(folder)
    return [
        entry
        for entry in (fs.ls(path, detail=True) if fs.isdir(path) else ())  # an object store may list the folder itself
        if (entry["size"] or entry["type"] == "directory") and entry["name"].strip("/") != path.strip("/")
        if not posixpath.basename(entry["name"].rstrip("/")).startswith((".", "_"))
    ]


def table_files(folder: str) -> list[str]:
    """Returns the paths of the files of tables in a folder, in order, as `visible` has them."""
    found = visible(folder)
    return sorted(each["name"] for each in found if each["type"] == "file" and each["name"].endswith(SUFFIXES))


def files_of(uri: str) -> list[str]:
    """Returns the URIs of a table's files, in the order of their names.

    Raises:
        UserError: a folder holds none, or files of several formats.
    """
    fs, path = files.filesystem(uri)
    if not fs.isdir(path):
        return [uri]
    names = [files.join(uri, posixpath.basename(name)) for name in table_files(uri)]
    if not names:
        raise UserError(f"{uri} is a folder without a file that ends in {', '.join(SUFFIXES)}: write its parts there.")
    of_format = {format_of(name): name for name in names}
    if len(of_format) > 1:
        raise UserError(f"{uri} holds files of several formats ({', '.join(of_format.values())}): keep those of one.")
    return names


def format_of(uri: str) -> str:
    """Returns the format of a file, one of `FORMATS`, by its name."""
    return uri.removesuffix(".gz").rsplit(".", 1)[-1]


class Scanned(NamedTuple):
    """Rows of a table as a file of it has them.

    Attributes:
        rows: in their order, without columns that have no name (the index that a data frame wrote).
        bad: of each line that is no row, what is wrong with it.
        notes: what had to be guessed, a sentence each.
        before: rows of the file that come before these.
        numbers: see `text_tables.Block`; the same for all files of a table.
    """

    rows: pl.DataFrame
    bad: list[str]
    notes: list[str]
    before: int = 0
    numbers: dict[str, bool] | None = None


class Source(NamedTuple):
    """A part of a table that can be read by itself: a text file, or row groups of a Parquet file.

    Attributes:
        uri: of the file.
        groups: of Parquet.
        before: rows of the file that come before these.
        rows: how many there are; 0 where only reading tells.
    """

    uri: str
    groups: tuple[int, ...] = ()
    before: int = 0
    rows: int = 0


def sources(uri: str) -> list[Source]:
    """Returns the parts of a table that can be read by themselves, in their order.

    Raises:
        UserError: a Parquet file does not parse.
    """
    return [source for part in files_of(uri) for source in _sources(part)]


def _sources(part: str) -> Iterator[Source]:
    if format_of(part) != "parquet":
        yield Source(part)
        return
    with _parquet(part) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups, rows, before = list[int](), 0, 0
    for group, size in enumerate(sizes):
        if groups and rows + size > SOURCE_ROWS:
            yield Source(part, tuple(groups), before, rows)
            groups, rows, before = [], 0, before + rows
        groups.append(group)
        rows += size
    yield Source(part, tuple(groups), before, rows)


def blocks(
    source: Source, numbers: dict[str, bool] | None = None, wanted: list[str] | None = None
) -> Iterator[Scanned]:
    """Yields the rows of a source, as many at a time as fit into memory several times; none without rows.

    Args:
        source: of the table.
        numbers: of `Scanned`, by an earlier block of the table; else the first block decides.
        wanted: columns that are read; others may be there, too.

    Raises:
        UserError: the file does not parse.
    """
    if format_of(source.uri) == "parquet":
        return _parquet_blocks(source, wanted)
    return _text_blocks(source, numbers, BLOCK_BYTES)


def _parquet_blocks(source: Source, wanted: list[str] | None) -> Iterator[Scanned]:
    before = source.before
    with _parquet(source.uri) as file:
        groups = [file.metadata.row_group(group) for group in source.groups]
        row_bytes = sum(group.total_byte_size for group in groups) // (sum(group.num_rows for group in groups) or 1)
        most = min(BLOCK_ROWS, max(1, LONGEST // (row_bytes or 1)))
        names = [name for name in named(file.schema_arrow.names) if wanted is None or name in wanted]
        for batch in file.iter_batches(most, row_groups=list(source.groups), columns=names):
            rows = pl.DataFrame(pl.from_arrow(batch)).select(names)
            yield Scanned(rows.with_columns(plain(rows.schema)), [], [], before)
            before += batch.num_rows


def plain(schema: pl.Schema) -> Iterator[pl.Expr]:
    """Yields columns of Parquet as other files would have them: categories and fixed lists of text, and times as UTC,
    which those without a zone are."""
    for name, dtype in schema.items():
        if isinstance(dtype, pl.Categorical | pl.Enum):
            yield pl.col(name).cast(pl.String)
        elif isinstance(dtype, pl.Array | pl.List) and isinstance(dtype.inner, pl.Categorical | pl.Enum | pl.String):
            yield pl.col(name).cast(pl.List(pl.String))
        elif isinstance(dtype, pl.Datetime) and dtype.time_zone != "UTC":
            moments = pl.col(name).dt
            yield moments.convert_time_zone("UTC") if dtype.time_zone else moments.replace_time_zone("UTC")


@contextlib.contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with files.opened(uri) as stream:
            yield pq.ParquetFile(stream, buffer_size=1 << 20)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise _no_parquet(uri) from error


def _text_blocks(source: Source, numbers: dict[str, bool] | None, block_bytes: int) -> Iterator[Scanned]:
    uri, before, notes = source.uri, 0, list[str]()
    read_rows = text_tables.read_csv if format_of(uri) == "csv" else json_lines.read_json_lines

    def contents() -> Iterator[tuple[bytes, bool]]:
        for content, guess, last in read_utf8(stream, block_bytes):
            if guess:
                notes.append(f"{uri} {guess}: if letters look wrong, save it as UTF-8")
            yield content, last

    try:
        with files.opened(uri) as first:
            if other := _foreign(first.read(START)):
                raise UserError(f"{uri} is {other}.")
        with files.opened(uri) as stream:
            for block in read_rows(contents(), uri, numbers):
                notes += [f"{uri} {found}" for found in text_tables.open_quotes(block.rows)]
                yield Scanned(block.rows.select(named(block.rows.columns)), block.bad, notes[:], before, block.numbers)
                notes.clear()
                before += block.rows.height
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{uri} cannot be unpacked by gzip: compress it again, or remove .gz from its name.") from error


def read(uri: str, wanted: list[str] | None = None) -> Iterator[Scanned]:
    """Yields the rows of a whole table, see `blocks`."""
    numbers = None
    for source in sources(uri):
        for block in blocks(source, numbers, wanted):
            numbers = numbers if numbers is not None else block.numbers
            yield block


def first(uri: str) -> Scanned:
    """Returns the first rows of a table, by which it is decided how all of it is read; none if it has none."""
    return next((block for block in read(uri) if block.rows.height), Scanned(pl.DataFrame(), [], []))


def scan(uri: str) -> Scanned:
    """Reads a whole table that fits into memory.

    Raises:
        UserError: a file does not parse.
    """
    return _scanned(uri, files.signature(uri))


@functools.lru_cache(maxsize=2)  # both tables of a catalogue
def _scanned(uri: str, _signature: tuple[str, ...]) -> Scanned:
    found = list(read(uri))
    rows = as_one([block.rows for block in found])
    return Scanned(rows, [line for block in found for line in block.bad], [note for one in found for note in one.notes])


def as_one(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Returns the rows of all tables.

    Columns that are lists or objects in one table and something else in another become text, as in one block of JSON
    Lines.
    """
    if not tables:
        return pl.DataFrame()
    with contextlib.suppress(pl.exceptions.PolarsError):
        return pl.concat(tables, how="diagonal_relaxed")
    kinds: dict[str, set[pl.DataType]] = {}
    for table in tables:
        for name, dtype in table.schema.items():
            kinds.setdefault(name, set()).add(dtype)
    mixed = {name for name, found in kinds.items() if len(found) > 1 and any(dtype.is_nested() for dtype in found)}
    return pl.concat(
        [
            table.with_columns(
                pl.Series(column.name, [json_lines.as_text(value) for value in column.to_list()], pl.String)
                for column in table
                if column.name in mixed
            )
            for table in tables
        ],
        how="diagonal_relaxed",
    )


def is_parquet(uri: str) -> bool:
    """Returns whether a table is Parquet, not text."""
    return format_of(files_of(uri)[0]) == "parquet"


def rows_about(uri: str) -> int:
    """Returns how many rows a table has: of Parquet exactly, of text about, by the start of its largest file."""
    if is_parquet(uri):
        return sum(source.rows for source in sources(uri))
    sizes = {name: files.size(name) * (UNPACKED if name.endswith(".gz") else 1) for name in files_of(uri)}
    largest = max(sizes, key=sizes.__getitem__)  # others may hold a header alone
    return round(first(largest).rows.height * sum(sizes.values()) / min(max(sizes[largest], 1), BLOCK_BYTES))


def complete(uri: str, names: Iterable[str]) -> set[str]:
    """Returns which columns of a Parquet table have a value in every row, by the statistics of its files alone.

    A list is one where it is neither empty nor has an empty place. Of text nothing is known.
    """
    found = set(names) if is_parquet(uri) else set[str]()
    for part in files_of(uri) if found else ():
        with _parquet(part) as file:
            meta = file.metadata
            for group in range(meta.num_row_groups):
                chunks = [meta.row_group(group).column(at) for at in range(meta.num_columns)]
                nulls = {
                    chunk.path_in_schema.split(".")[0]: chunk.statistics.null_count
                    for chunk in chunks
                    if chunk.statistics is not None
                }
                found = {name for name in found if nulls.get(name) == 0}
    return found


def dataset(uri: str) -> pyarrow.dataset.Dataset:
    """Returns a Parquet table as a lazy Arrow dataset."""
    paths = [files.filesystem(part)[1] for part in files_of(uri)]
    return pyarrow.dataset.dataset(paths, filesystem=files.filesystem(uri)[0], format="parquet")


def named(columns: list[str]) -> list[str]:
    """Returns the columns that have a name of their own; data frames call the others `Unnamed: 0` or the like."""
    return [name for name in columns if not re.fullmatch(UNNAMED, name)]


def columns(uri: str) -> list[str]:
    """Names of a table's columns, by the first of its files.

    Raises:
        UserError: a file does not parse, or has other columns than the first.
    """
    names = files_of(uri)
    found = _columns(names[0])
    for name in names[1:] if format_of(names[0]) != "jsonl" else ():
        if set(_columns(name)) != set(found):
            raise UserError(f"{name} has other columns than {names[0]}: write all files of a table with the same ones.")
    return found


def _columns(part: str) -> list[str]:
    if format_of(part) == "parquet":
        with _parquet(part) as file:
            return named(file.schema_arrow.names)
    return next((block.rows.columns for block in _text_blocks(Source(part), None, SAMPLE_BYTES)), [])


def _foreign(start: bytes) -> str | None:
    return next((said for first, said in FOREIGN.items() if start.startswith(first)), None)


def _no_parquet(uri: str) -> UserError:
    """Returns the error of a file that cannot be read as Parquet, by its first bytes."""
    fs, path = files.filesystem(uri)
    with fs.open(path, "rb") as stream:
        start = stream.read(START)
    if start.startswith(b"PAR1") or not (other := _foreign(start)):
        text = start and not start.startswith(b"PAR1") and 0 not in start
        suffix = "jsonl" if start.lstrip().startswith(b"{") else "csv"
        remedy = f"it is text, so give it the suffix .{suffix}" if text else "write it again"
        return UserError(f"{uri} cannot be read as Parquet: {remedy}.")
    return UserError(f"{uri} is {other}.")
