"""Finding and reading the tables of a catalogue: `items` and `interactions` as Parquet, CSV or JSON Lines."""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import xxhash

from storage import files, text_tables
from storage.errors import UserError

FORMATS = ("parquet", "csv", "jsonl")
REQUIRED = {"items": ("item_id",), "interactions": ("user_id", "item_id", "timestamp")}
KNOWN = {
    "items": ("item_id", "title", "description", "media", "attributes"),
    "interactions": ("user_id", "item_id", "timestamp", "label", "propensity"),  # of what was shown; no feature
}
FORMS = {
    "item_id": "text or whole numbers",
    "user_id": "text or whole numbers",
    "title": "text",
    "description": "text",
    "media": "URIs, or lists of URIs or of objects with the keys uri and kind",
    "attributes": 'objects such as {"colour": "red"}, pairs of key and value, or rename the column to description',
}
EMPTY = {
    "items": "a catalogue needs at least one item",
    "interactions": "write events there, or remove the file to work on items alone",
}
FOREIGN = {  # by its first bytes, what a file is, and what to do
    b"PAR1\x15": "a Parquet file: give it the suffix .parquet",
    b"PK\x03\x04": "an Excel workbook or another ZIP archive: export its table as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: export its table as CSV",
    b"\x1f\x8b": "compressed with gzip: unpack it",
}
START = 1 << 12  # bytes that tell what a file is
UNNAMED = r"|Unnamed: \d+(\.\d+)?|_c\d+|\.\.\.\d+|__index_level_\d+__"  # by a CSV, pandas, Spark, readr, Arrow


def find(catalog: str, table: str) -> str | None:
    """URI of a table's file (`items.parquet`, `items.csv`, …) in a catalogue, None where it is absent.

    Raises:
        UserError: it is there in two formats.
    """
    found = [uri for suffix in FORMATS if files.exists(uri := files.join(catalog, f"{table}.{suffix}"))]
    if len(found) > 1:
        raise UserError(f"{catalog} holds {table} in {len(found)} formats: keep one of {', '.join(found)}.")
    return found[0] if found else None


def _otherwise_written(catalog: str, table: str) -> str | None:
    """Returns the name of a table's file in capitals; a list of all files could be one of a million pictures."""
    names = (
        f"{name}.{end}"
        for name in (table, table.title(), table.upper())
        for suffix in FORMATS
        for end in (suffix, suffix.upper())
    )
    return next((name for name in names if name.lower() != name and files.exists(files.join(catalog, name))), None)


class Scanned(NamedTuple):
    """A table as its file has it.

    Attributes:
        rows: of the file, without columns that have no name (the index that a data frame wrote).
        bad: of each line that is no row, what is wrong with it.
        notes: what had to be guessed, a sentence each.
    """

    rows: pl.DataFrame
    bad: list[str]
    notes: list[str]


def scan(uri: str) -> Scanned:
    """Reads a table as it is, without judging its columns; of text, which takes a while to parse, until `forget` once.

    Raises:
        UserError: the file does not parse.
    """
    if not uri.endswith(".parquet"):
        return _parsed(uri, files.signature(uri))
    try:
        rows = pl.read_parquet(files.read_bytes(uri))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _no_parquet(uri) from error
    return Scanned(rows.select(named(rows.columns)), [], [])


@functools.lru_cache(maxsize=2)  # both tables of a catalogue
def _parsed(uri: str, _signature: tuple[str, ...]) -> Scanned:
    content = files.read_bytes(uri)
    if other := _foreign(content[:START]):
        raise UserError(f"{uri} is {other}.")
    content, guess = text_tables.as_utf8(content)
    notes = [f"{uri} {guess}: if letters look wrong, save it as UTF-8"] if guess else []
    if uri.endswith(".csv"):
        rows, bad = text_tables.read_csv(content, uri)
        notes += [f"{uri} {found}" for found in text_tables.open_quotes(rows)]
    else:
        rows, bad = text_tables.read_json_lines(content, uri)
    return Scanned(rows.select(named(rows.columns)), bad, notes)


def forget() -> None:
    """Frees the memory of the tables that were read from text."""
    _parsed.cache_clear()


def named(columns: list[str]) -> list[str]:
    """Returns the columns that have a name of their own; data frames call the others `Unnamed: 0` or the like."""
    return [name for name in columns if not re.fullmatch(UNNAMED, name)]


def columns(uri: str) -> list[str]:
    """Names of a table's columns."""
    if not uri.endswith(".parquet"):
        return scan(uri).rows.columns
    fs, path = files.filesystem(uri)
    try:
        with fs.open(path, "rb") as stream:
            return named(list(pl.read_parquet_schema(stream)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _no_parquet(uri) from error


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


def check(catalog: str) -> None:
    """Refuses a catalogue that cannot be worked on; it may lack interactions.

    Raises:
        UserError: a table or a required column is missing, or a table has no rows.
    """
    if not files.exists(catalog):
        raise UserError(f"There is no catalogue at {catalog}: write its items table there.")
    fs, path = files.filesystem(catalog)
    if fs.isfile(path):
        raise UserError(f"{catalog} is a file: name the folder in which it lies, and the table items.csv or the like.")
    for table in ("items", "interactions"):
        uri = find(catalog, table)
        if uri is None:
            if other := _otherwise_written(catalog, table):
                raise UserError(f"{catalog} has a table {other}: rename it to {other.lower()}.")
            if table == "items":
                raise UserError(f"{catalog} has no items table: expected items.parquet, items.csv or items.jsonl.")
            continue
        if fs.isdir(files.filesystem(uri)[1]):
            raise UserError(f"{uri} is a folder: write its parts as one file.")
        present = columns(uri)
        for column in REQUIRED[table]:
            if column not in present:
                same = [name for name in present if _bare(name) == _bare(column)]
                part_of = [name for name in present if name.lower() in column]
                near = same or part_of or difflib.get_close_matches(column, present, n=1, cutoff=0.6)
                hint = f"rename {near[0]!r}" if near else f"the columns are {', '.join(present)}"
                raise UserError(f"{uri} has no column {column!r}: {hint}.")
        if uri.endswith(".parquet"):
            rows, bad = files.dataset(uri).count_rows(), list[str]()
        else:
            rows, bad = scan(uri).rows.height, scan(uri).bad
        if not rows:
            found = f"no row that can be read ({bad[0]})" if bad else "no rows"
            raise UserError(f"{uri} has {found}: {EMPTY[table]}.")


def _bare(name: str) -> str:
    """Returns the letters and digits of a name in lower case."""
    return re.sub(r"[\W_]", "", name).lower()


def check_ids(uri: str, schema: pl.Schema, *names: str) -> None:
    """Checks that columns of ids are no lists, objects or bytes.

    Raises:
        UserError: one is.
    """
    for name in names:
        if schema[name].is_nested() or schema[name] == pl.Binary:
            raise unreadable(uri, name, f"type {schema[name]}")


def unreadable(uri: str, column: str, found: str) -> UserError:
    """Returns the error of a column in another form than its name asks for."""
    return UserError(f"{uri} has a column {column!r} that cannot be read ({found[:80]}): write {FORMS[column]}.")


def entries(attributes: pa.Array | pa.ChunkedArray) -> pl.DataFrame:
    """Returns every entry of a column map<string, string>: `row` (uint32, its position), `key`, `value`."""
    column = pl.Series(pl.from_arrow(attributes)).cast(pl.List(pl.Struct({"key": pl.String, "value": pl.String})))
    return pl.DataFrame({"entry": column}).with_row_index("row").explode("entry").unnest("entry")


def timestamps(catalog: str) -> str | None:
    """What `catalog.json` says of the log's timestamps, see `catalogs.canonical`; None where it says nothing."""
    try:
        about = files.read_json(files.join(catalog, "catalog.json"))
    except (
        FileNotFoundError,
        ValueError,
    ):  # none, no JSON, or no UTF-8: the file is optional, and tables stand for themselves
        return None
    found = about.get("timestamps") if isinstance(about, dict) else None
    return found if isinstance(found, str) else None


def signature(catalog: str) -> list[str]:
    """What identifies a catalogue's tables and `catalog.json`: hashes of local files, entity tags of remote ones.

    Media are not read: a changed picture under the same name goes unnoticed until the tables change.
    """
    found = []
    sources = {table: find(catalog, table) for table in ("items", "interactions")}
    sources["about"] = files.join(catalog, "catalog.json")
    for name, uri in sources.items():
        if uri is None or not files.exists(uri):
            continue
        fs, path = files.filesystem(uri)
        if "file" in fs.protocol:
            with Path(path).open("rb") as stream:
                found.append(f"{name}:{hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()}")
        else:
            found.append(f"{name}:{fs.ukey(path)}")
    return [catalog, *found]
