"""The canonical catalogue on disk: its schemas, and what all its writers share.

DIR/items.parquet  interactions.parquet (absent without a log)  media/  catalog.json

`catalog.json` states what the timestamps mean: "real" ones can be compared across users, "order" ones only order the
events of one user, "none" means that there is no log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv

from storage import files
from storage.errors import UserError

MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
TIMESTAMP = pa.timestamp("us", "UTC")
GIVEN = ("caption", "interests", "embedding", "image_vector", "text_vector")  # columns in place of a model
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("media", MEDIA),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
LOG = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp": TIMESTAMP,
    "label": pa.float32(),
    "propensity": pa.float32(),
}


def require_empty(directory: str) -> None:
    """Checks that a target is empty or new.

    Raises:
        UserError: the directory is not empty, or is a file; or see `files.probe`.
    """
    files.probe(directory, write=True)
    fs, path = files.filesystem(directory)
    if fs.exists(path) and (fs.isfile(path) or fs.ls(path, detail=False)):
        raise UserError(f"{directory} is not empty: name a new directory for the catalogue.")


def require_file(source: str, name: str) -> str:
    """Returns the URI of a file of a source.

    Raises:
        UserError: the file is missing.
    """
    uri = files.join(source, name)
    if not files.exists(uri):
        raise UserError(f"There is no {name} in {source}: point to the folder that holds it.")
    return uri


def read_csv(source: str, name: str, columns: dict[str, pa.DataType]) -> pa.Table:
    """Reads some columns of a CSV file with a header; empty strings become null.

    Raises:
        UserError: the file is missing or damaged, a column is missing, or a value has another type.
    """
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(files.read_bytes(require_file(source, name))),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=columns, include_columns=list(columns), strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} must have the columns {', '.join(columns)}, well formed: {reason}") from error


def items_table(
    item_ids: list[str],
    titles: list[str | None],
    media: list[list[dict[str, str]]],
    attributes: Sequence[dict[str, str] | None],
) -> pa.Table:
    """Returns the items of a data set without descriptions."""
    return pa.table([item_ids, titles, [None] * len(item_ids), media, attributes], schema=ITEMS)


def log_table(user_ids: pa.Array, item_ids: pa.Array, seconds: pa.Array) -> pa.Table:
    """Returns the events of a log from ids and unix seconds."""
    timestamps = seconds.cast(pa.timestamp("s", "UTC")).cast(TIMESTAMP)
    return pa.table({"user_id": user_ids, "item_id": item_ids, "timestamp": timestamps})


def copy_images(source: str, item_ids: list[str], directory: str) -> list[list[dict[str, str]]]:
    """Copies `ITEM_ID.jpg` from the folder `source` into the catalogue and returns the media of each item.

    They are copied because links that leave a catalogue's root are refused when media are fetched.
    """
    fs, path = files.filesystem(source)
    present = {uri.rsplit("/", 1)[-1] for uri in fs.ls(path, detail=False)} if fs.isdir(path) else set()
    media: list[list[dict[str, str]]] = []
    for name in (f"{item_id}.jpg" for item_id in item_ids):
        if name in present:
            files.write_bytes(files.join(directory, "media", name), files.read_bytes(files.join(source, name)))
        media.append([{"uri": f"media/{name}", "kind": "image"}] if name in present else [])
    return media


def write_catalog(
    directory: str,
    *,
    name: str,
    source: str,
    items: pa.Table,
    interactions: pa.Table | None,
    timestamps: Literal["real", "order", "none"],
    notes: list[str],
) -> dict[str, Any]:
    """Writes the tables, then `catalog.json`, and returns a summary."""
    files.write_part(files.join(directory, "items.parquet"), items)
    if interactions is not None:
        files.write_part(files.join(directory, "interactions.parquet"), interactions)
    write_about(directory, name=name, source=source, timestamps=timestamps, notes=notes)
    count = 0 if interactions is None else interactions.num_rows
    return {"name": name, "items": items.num_rows, "interactions": count, "notes": notes}


def write_about(directory: str, **about: Any) -> None:
    """Writes `catalog.json`, with the arguments of `write_catalog` that are no tables."""
    files.write_json(files.join(directory, "catalog.json"), about)
