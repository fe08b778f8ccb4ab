"""Finding and reading the tables of a catalogue: `items` and `interactions` as Parquet, CSV or JSON Lines."""

from __future__ import annotations

import difflib
import hashlib
import posixpath
from pathlib import Path

import polars as pl
import xxhash

from storage import files
from storage.errors import UserError

FORMATS = ("parquet", "csv", "jsonl")
REQUIRED = {"items": ("item_id",), "interactions": ("user_id", "item_id", "timestamp")}
KNOWN = {
    "items": ("item_id", "title", "description", "media", "attributes"),
    "interactions": ("user_id", "item_id", "timestamp", "label", "propensity"),  # of what was shown; no feature
}


def find(catalog: str, table: str) -> str | None:
    """URI of a table's file (`items.parquet`, `items.csv`, …) in a catalogue, None where it is absent.

    Raises:
        UserError: it is there in two formats.
    """
    found = [uri for suffix in FORMATS if files.exists(uri := files.join(catalog, f"{table}.{suffix}"))]
    if len(found) > 1:
        raise UserError(f"{catalog} holds {table} in {len(found)} formats: keep one of {', '.join(found)}.")
    return found[0] if found else None


def scan(uri: str) -> pl.DataFrame:
    """Reads a table as it is, without judging its columns.

    Raises:
        UserError: the file does not parse.
    """
    content = files.read_bytes(uri)
    try:
        match posixpath.splitext(uri)[1]:
            case ".parquet":
                return pl.read_parquet(content)
            case ".csv":
                return pl.read_csv(
                    content, infer_schema_length=None, schema_overrides={"item_id": pl.String, "user_id": pl.String}
                )
            case _:
                return pl.read_ndjson(content, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{uri} cannot be read: {' '.join(str(error).split())[:200]}.") from error


def columns(uri: str) -> list[str]:
    """Names of a table's columns."""
    fs, path = files.filesystem(uri)
    if not uri.endswith(".parquet"):
        return scan(uri).columns
    try:
        with fs.open(path, "rb") as stream:
            return list(pl.read_parquet_schema(stream))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{uri} cannot be read: {' '.join(str(error).split())[:200]}.") from error


def check(catalog: str, *, needs_interactions: bool) -> None:
    """Refuses a catalogue that cannot be worked on.

    Raises:
        UserError: a table or a required column is missing, or there are no items.
    """
    if not files.exists(catalog):
        raise UserError(f"There is no catalogue at {catalog}: write its items table there.")
    for table in ("items", "interactions"):
        uri = find(catalog, table)
        if uri is None:
            if table == "items" or needs_interactions:
                raise UserError(
                    f"{catalog} has no {table} table: expected {table}.parquet, {table}.csv or {table}.jsonl."
                )
            continue
        present = columns(uri)
        for column in REQUIRED[table]:
            if column not in present:
                part_of = [name for name in present if name.lower() in column]
                near = part_of or difflib.get_close_matches(column, present, n=1, cutoff=0.6)
                hint = f"rename {near[0]!r}" if near else f"the columns are {', '.join(present)}"
                raise UserError(f"{uri} has no column {column!r}: {hint}.")
        if table == "items" and rows(uri) == 0:
            raise UserError(f"{uri} has no rows: a catalogue needs at least one item.")


def rows(uri: str) -> int:
    """Numbers of rows of a table."""
    if uri.endswith(".parquet"):
        return files.dataset(uri).count_rows()
    return scan(uri).height


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
