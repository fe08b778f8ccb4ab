"""Finding and checking the tables of a catalogue: `items` and `interactions` as Parquet, CSV or JSON Lines."""

from __future__ import annotations

import difflib
import hashlib
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import xxhash

from storage import files
from storage.blocks import SUFFIXES, columns, files_of, read, table_files, visible
from storage.errors import UserError

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


OTHERS = {  # endings under which a table may lie, and what to do with it
    **dict.fromkeys(("tsv", "tab"), "rename it to {}.csv"),
    **dict.fromkeys(("json", "ndjson"), "rename it to {}.jsonl, if it has one object on each line"),
    **dict.fromkeys(("csv.zip", "csv.zst", "csv.bz2", "jsonl.zst", "json.gz", "parquet.gz"), "unpack it"),
    **dict.fromkeys(("xlsx", "xls", "ods", "feather", "arrow", "avro"), "export it as {}.csv or {}.parquet"),
}
TIMESTAMPS = ("real", "order", "none")


def find(catalog: str, table: str) -> str | None:
    """URI of a table's file or folder (`items.parquet`, `items.csv.gz`, `items`, …), None where it is absent.

    The folder `items` is one if it holds files of tables: it may be one of pictures.

    Raises:
        UserError: it is there in two formats.
    """
    found = [uri for suffix in SUFFIXES if files.exists(uri := files.join(catalog, table + suffix))]
    if len(found) > 1:
        raise UserError(f"{catalog} holds {table} in {len(found)} formats: keep one of {', '.join(found)}.")
    folder = files.join(catalog, table)
    return found[0] if found else folder if table_files(folder) else None


def _otherwise_written(catalog: str, table: str) -> str | None:
    """Says what to do with a table that is there under a name that is not read.

    It asks for names, as a list of all files could be one of a million pictures.
    """
    for end, remedy in OTHERS.items():
        if files.exists(files.join(catalog, f"{table}.{end}")):
            return f"{table}.{end}, which is not read: {remedy.format(table, table)}"
    if table == "interactions" and (within := [each["name"] for each in visible(files.join(catalog, table))]):
        name = posixpath.basename(min(within).rstrip("/"))
        return f"a folder {table} with {name}, which is not read: put .parquet, .csv or .jsonl files directly into it"
    names = (
        f"{name}.{end}"
        for name in (table, table.title(), table.upper())
        for suffix in SUFFIXES
        for end in (suffix[1:], suffix[1:].upper())
    )
    found = next((name for name in names if name.lower() != name and files.exists(files.join(catalog, name))), None)
    return found and f"a table {found}: rename it to {found.lower()}"


def check(catalog: str) -> None:
    """Refuses a catalogue that cannot be worked on; it may lack interactions.

    Raises:
        UserError: a table or a required column is missing, or a table has no rows; or see `files.probe`.
    """
    files.probe(catalog)
    if not files.exists(catalog):
        raise UserError(f"There is no catalogue at {catalog}: write its items table there.")
    fs, path = files.filesystem(catalog)
    if fs.isfile(path):
        raise UserError(f"{catalog} is a file: name the folder in which it lies, and the table items.csv or the like.")
    for table in ("items", "interactions"):
        uri = find(catalog, table)
        if uri is None:
            if other := _otherwise_written(catalog, table):
                raise UserError(f"{catalog} has {other}.")
            if table == "items":
                raise UserError(f"{catalog} has no items table: expected items.parquet, items.csv or items.jsonl.")
            continue
        present = columns(uri)
        for column in REQUIRED[table]:
            if column not in present:
                same = [name for name in present if _bare(name) == _bare(column)]
                part_of = [name for name in present if name.lower() in column]
                near = same or part_of or difflib.get_close_matches(column, present, n=1, cutoff=0.6)
                hint = f"rename {near[0]!r}" if near else f"the columns are {', '.join(present)}"
                raise UserError(f"{uri} has no column {column!r}: {hint}.")
        bad = list[str]()
        for block in read(uri):
            bad += block.bad[:1]
            if block.rows.height:
                break
        else:
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


def about(catalog: str) -> dict[str, Any]:
    """What `catalog.json` says, see `catalogs.canonical`; nothing where there is none: tables stand for themselves.

    A file of that name that is something else says nothing.

    Raises:
        UserError: it names timestamps, and is not valid JSON.
    """
    uri = files.join(catalog, "catalog.json")
    try:
        content = files.read_bytes(uri)
    except (FileNotFoundError, ValueError):  # none, or a place that is none
        return {}
    try:
        found = json.loads(content)
    except ValueError as error:  # no JSON, or no UTF-8
        if b"timestamps" in content:
            raise UserError(f"{uri} is not valid JSON ({error}): mend it, or remove it.") from error
        return {}
    return found if isinstance(found, dict) else {}


def timestamps(catalog: str) -> str | None:
    """What `catalog.json` says of the log's timestamps; None where it says nothing.

    Raises:
        UserError: it says what is not known.
    """
    found: str | None = about(catalog).get("timestamps")
    if found not in (None, *TIMESTAMPS):
        raise UserError(
            f"{catalog}/catalog.json has timestamps {str(found)[:50]!r}: write one of {', '.join(TIMESTAMPS)}."
        )
    return found


def exported(catalog: str) -> dict[str, Any]:
    """Returns what `catalog.json` says of the run that `tesserec export` wrote a catalogue from; empty for others.

    `ingest` is the fingerprint of that stage; `parts` are the files of the log that hold a partition as it is, with the
    number and the state of each.
    """
    found = about(catalog).get("partitions_of")
    return found if isinstance(found, dict) else {}


def signature(catalog: str) -> list[str]:
    """What identifies a catalogue's tables and `catalog.json`: hashes of local files, entity tags of remote ones.

    Media are not read: a changed picture under the same name goes unnoticed until the tables change.
    """
    found = []
    for name in ("items", "interactions"):
        uri = find(catalog, name)
        found += [f"{name}:{state(part)}" for part in files_of(uri)] if uri is not None else []
    own = files.join(catalog, "catalog.json")
    return [catalog, *found, *([f"about:{state(own)}"] if files.exists(own) else [])]


def state(uri: str) -> str:
    """Returns what tells one content of a file from another."""
    fs, path = files.filesystem(uri)
    if "file" not in fs.protocol:
        return str(fs.ukey(path))
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
