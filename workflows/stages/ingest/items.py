"""The items of a catalogue in canonical form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from operators.base import REJECTED
from storage import tables
from storage.errors import UserError
from storage.json_lines import as_text
from storage.text_tables import MISSING, said
from workflows.catalogs.canonical import ITEMS
from workflows.stages.ingest.given import NOT_FINITE, given_columns
from workflows.stages.ingest.texts import ids, nested, plain

MEDIUM = pl.Struct({"uri": pl.String, "kind": pl.String})
PAIR = pl.Struct({"key": pl.String, "value": pl.String})
ITEM_TYPES = ITEMS.remove(ITEMS.get_field_index("attributes"))
PICTURES = "jpe?g|jfif|png|webp|avif|gif|bmp|tiff?|heic"
VIDEOS = "mp4|m4v|mov|webm|mkv|avi|mpe?g|gifv|3gp|flv|m?ts|wmv|ogv"
VIDEO_SUFFIX = rf"(?i)\.({VIDEOS})([?#].*)?$"  # a hint; bytes decide
FILE = rf"[^,;|]+\.(?:{PICTURES}|{VIDEOS})(?:[?#][^,;|]*)?"
FILES = rf"(?i)^{FILE}(?:[,;]{FILE})*[,;\s]*$"
UNREADABLE = ("no_media", "no_attributes", NOT_FINITE)  # columns of `canonical_items`, and codes of degraded items
WRITTEN_PAIR = r"^(?P<key>[\p{L}_][^=:]{0,39})[=:](?P<value>.+)$"
NESTED = r"^\s*[\[({]"  # text that may be a list or an object


def canonical_items(
    raw: pl.DataFrame, source: str, whole: bool | None = None, widths: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Gives rows of items the canonical columns and types (docs/own-data.md), titles and descriptions without markup.

    Args:
        raw: the rows as they are.
        source: name of the table in errors.
        whole: see `texts.ids`.
        widths: see `given.given_columns`.

    Returns:
        The columns of a catalogue's items, those that are given in place of a model, and the columns of `UNREADABLE`:
        what cannot be read, null elsewhere.

    Raises:
        UserError: a column has a type that cannot be read as what it should be.
    """
    missing = [pl.lit(None).alias(name) for name in tables.KNOWN["items"] if name not in raw.columns]
    raw = raw.with_columns(missing)
    tables.check_ids(source, raw.schema, "item_id")
    columns = [
        _read(raw["item_id"], source, partial(ids, whole=whole)),
        *(_read(raw[name], source, plain) for name in ("title", "description")),
        *_read(raw["media"], source, _media),
        *_read(raw["attributes"], source, _attributes),
        *given_columns(raw, source, widths),
    ]
    return pl.DataFrame(columns)


def _read(column: pl.Series, source: str, function: Callable[[pl.Series], Any]) -> Any:
    """Words polars' errors about a column as one of the user's."""
    try:
        return function(column)
    except (pl.exceptions.PolarsError, _WrongFormError) as error:
        found = str(error) if isinstance(error, _WrongFormError) else f"type {column.dtype}"
        raise tables.unreadable(source, column.name, found) from error


class _WrongFormError(Exception):
    """A value in another form than its column may have; the message is the value."""


def split_items(
    items: pl.DataFrame, bad: list[str], first: pl.Series, where: str = "the items table"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Usable items, and issues (item_id, severity, code, detail); of equal ids the first row stays.

    Args:
        items: of `canonical_items`, and `row`, the number of each in its file.
        bad: of each line that is no row, what is wrong with it.
        first: whether no row before has the id.
        where: the rows are, for details.
    """
    judged = items.with_columns(
        code=pl.when(pl.col("item_id").is_null())
        .then(pl.lit("no_item_id"))
        .when(pl.lit(~first))
        .then(pl.lit("duplicate_item_id"))
    )
    rejects = judged.filter(pl.col("code").is_not_null()).select(
        "item_id",
        severity=pl.lit(REJECTED),
        code="code",
        detail=pl.format("row {} of {}", pl.col("row") + 1, pl.lit(where)),  # from 1, as lines are
    )
    lines = pl.select(
        item_id=pl.lit(None, pl.String),
        severity=pl.lit(REJECTED),
        code=pl.lit("unreadable_row"),
        detail=pl.lit(pl.Series(bad, dtype=pl.String)),
    )
    kept = judged.filter(pl.col("code").is_null())
    degraded = [
        kept.filter(pl.col(code).is_not_null()).select(
            "item_id", severity=pl.lit("degraded"), code=pl.lit(code), detail=pl.col(code).str.head(200)
        )
        for code in UNREADABLE
    ]
    return kept.drop("code", "row", *UNREADABLE), pl.concat([lines, rejects, *degraded])


def no_usable(source: str, bad: list[str], rows: int) -> UserError:
    """Returns the error of a table whose rows are all rejected, as are lines that are none."""
    why = bad[0] if bad else "every item_id is empty" if rows else "it has no rows"
    return UserError(f"{source} has no usable item: {why}.")


def to_arrow(items: pl.DataFrame) -> pa.Table:
    """Arrow with the contract's types; polars knows no maps, so `attributes` is built from its lists of pairs."""
    table = items.to_arrow(compat_level=pl.CompatLevel.oldest())
    lists = table["attributes"].cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
    pairs = pa.concat_arrays(lists.chunks)
    keys, values = (pairs.values.field(name) for name in ("key", "value"))
    attributes = pa.MapArray.from_arrays(pairs.offsets, keys, values, mask=pairs.is_null())
    table = table.drop_columns("attributes")
    types = {
        **{field.name: field.type for field in ITEM_TYPES},
        "caption": pa.string(),
        "interests": pa.list_(pa.string()),
    }
    schema = pa.schema([(field.name, types.get(field.name, field.type)) for field in table.schema])
    return table.cast(schema).append_column("attributes", attributes)


def _media(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Reads lists of {uri, kind} or of URIs, such a list or one URI as text, or URIs parted by `|`.

    Commas and semicolons part them, too, where every part ends as a file of media does.

    Empty URIs are left out. A missing kind follows from the suffix.

    Returns:
        Lists of {uri, kind}; and the texts with an object that has no URI, null elsewhere.
    """
    unreadable = pl.Series("no_media", [None] * len(values), dtype=pl.String)
    if values.dtype == pl.Null:
        return values.cast(pl.List(MEDIUM)), unreadable
    if values.dtype == pl.List(pl.String) and values.explode().str.contains(NESTED).any():  # URIs here, objects there
        lists = (None if row is None else _media_of([nested(text or "") or text for text in row]) for row in values)
        texts, values = values.list.join(", ", ignore_nulls=True), pl.Series(list(lists), dtype=pl.List(MEDIUM))
        unreadable = _degraded(texts, _without_uri(values), "no_media")
    if values.dtype == pl.String:
        values = values.set(values.str.strip_chars().str.to_lowercase().is_in(MISSING), None)
        found = _parsed(values, _media_of, pl.List(MEDIUM))
        unreadable = _degraded(values, _without_uri(found), "no_media")
        parted = values.set(~values.str.contains(FILES), None).str.replace_all("[,;]", "|")
        split = (
            pl.coalesce(parted, values)
            .str.split("|")
            .list.eval(pl.struct(uri=pl.element(), kind=pl.lit(None, pl.String)))
        )
        values = pl.select(pl.coalesce(found, split)).to_series()
    if isinstance(values.dtype, pl.Struct):
        values = pl.select(pl.concat_list(values)).to_series()
    uri, kind = pl.element(), pl.lit(None, pl.String)
    if isinstance(values.dtype, pl.List) and isinstance(values.dtype.inner, pl.Struct):
        kind = uri.struct.field("kind") if "kind" in values.dtype.inner.to_schema() else kind
        uri = uri.struct.field("uri")
    uri = uri.cast(pl.String).str.strip_chars()
    guess = pl.when(uri.str.contains(VIDEO_SUFFIX)).then(pl.lit("video")).otherwise(pl.lit("image"))
    known = kind.cast(pl.String).str.to_lowercase().str.extract(r"^\s*(image|video)\b")  # "VIDEO", "video/mp4"
    media = values.list.eval(pl.struct(uri=uri, kind=pl.coalesce(known, guess)).filter(uri != ""))
    return media.alias("media"), unreadable


def _without_uri(media: pl.Series) -> pl.Series:
    """Returns whether what `_media_of` made of a text lacks a URI."""
    return media.list.eval(pl.element().struct.field("uri").is_null()).list.any().fill_null(value=False)


def _degraded(texts: pl.Series, where: pl.Series, code: str) -> pl.Series:
    """Returns the texts that cannot be read, null elsewhere.

    Raises:
        _WrongFormError: these are more than half of the texts, so the column is another than its name says.
    """
    unreadable = texts.set(~where, None).alias(code)
    if unreadable.count() > texts.count() / 2:
        raise _WrongFormError(unreadable.drop_nulls()[0])
    return unreadable


def _media_of(value: Any) -> list[dict[str, Any]]:
    """Returns the media of what was parsed from text: a URI, an object, or lists of them; see `_without_uri`."""
    if isinstance(value, list | tuple | set):
        return [medium for part in value for medium in _media_of(part)]
    if isinstance(value, dict) and "uri" not in value:
        return [{"uri": None, "kind": None}]
    uri, kind = (value["uri"], value.get("kind")) if isinstance(value, dict) else (value, None)
    return [{"uri": as_text(uri) or "", "kind": as_text(kind)}]


def _attributes(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Reads maps (lists of {key, value} or {name, value}), objects with one field per key, or either as text.

    For text see `texts.nested` and `_written_pairs`.

    Pairs without a key or a value are left out; the values of a key that an item has several times are joined.

    Returns:
        Lists of {key, value}, each key once; and the texts that cannot be read, null elsewhere.
    """
    if isinstance(values.dtype, pl.Map):
        values = values.cast(pl.List(pl.Struct({"key": values.dtype.key, "value": values.dtype.value})))
    dtype, unreadable = values.dtype, pl.Series("no_attributes", [None] * len(values), dtype=pl.String)
    if dtype == pl.Null or (isinstance(dtype, pl.Struct) and not dtype.fields):
        return pl.Series("attributes", [None] * len(values), dtype=pl.List(PAIR)), unreadable
    if dtype == pl.String:
        text = pl.select(said(pl.lit(values))).to_series()
        values = pl.select(pl.coalesce(_parsed(text, _pairs_of, pl.List(PAIR)), _written_pairs(text))).to_series()
        unreadable = _degraded(text, values.is_null(), "no_attributes")
    elif isinstance(dtype, pl.Struct):
        fields = [
            pl.select(pl.struct(key=pl.lit(field.name), value=_text(values.struct.field(field.name)))).to_series()
            for field in dtype.fields
        ]
        values = pl.select(pl.when(pl.lit(values.is_not_null())).then(pl.concat_list(fields))).to_series()
    elif isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        schema, pair = dtype.inner.to_schema(), pl.element().struct
        named = "key" if "key" in schema else "name"
        if not {named, "value"} <= schema.keys():
            raise _WrongFormError(str(dtype.inner))
        value = pair.field("value")
        several = isinstance(schema["value"], pl.List | pl.Array)
        joined = value.cast(pl.List(pl.String)).list.join(", ") if several else value.cast(pl.String)
        values = values.list.eval(pl.struct(key=pair.field(named), value=joined))
    return _distinct(values.cast(pl.List(PAIR))).alias("attributes"), unreadable


def _written_pairs(texts: pl.Series) -> pl.Series:
    """Reads `key=value` or `key: value`, parted by `;`, else `|`, else commas; null where a part is no such pair."""
    by = pl.lit(",")
    for other in "|;":
        by = pl.when(texts.str.contains(other, literal=True)).then(pl.lit(other)).otherwise(by)
    parts = pl.select(pl.lit(texts).str.split(by)).to_series()
    parts = parts.list.eval(pl.element().str.strip_chars().filter(pl.element().str.contains(r"\S")))
    pairs = parts.list.eval(pl.element().str.extract_groups(WRITTEN_PAIR))
    fine = pairs.list.eval(pl.element().struct.field("key").is_not_null()).list.all() & (pairs.list.len() > 0)
    return pl.select(pl.when(fine).then(pairs)).to_series()


def _text(values: pl.Series) -> pl.Series:
    """Returns the values of one attribute as text, lists joined."""
    if isinstance(values.dtype, pl.List | pl.Array):
        return values.cast(pl.List(pl.String)).list.join(", ")
    return values.struct.json_encode() if isinstance(values.dtype, pl.Struct) else values.cast(pl.String)


def _distinct(lists: pl.Series) -> pl.Series:
    """Cleans keys and values, leaves out pairs without either, and joins the distinct values of a key."""
    rows = pl.DataFrame({"row": pl.Series(range(len(lists)), dtype=pl.UInt32), "pair": lists})
    pairs = rows.explode("pair").drop_nulls("pair").unnest("pair")
    values = _parsed(pairs["value"], _value_of, pl.String)
    values = pairs.select(pl.coalesce(values, "value").alias("value")).to_series()
    pairs = pairs.with_columns(plain(pairs["key"]), plain(values))
    joined = (
        pairs.drop_nulls()
        .group_by("row", "key", maintain_order=True)
        .agg(pl.col("value").unique(maintain_order=True).str.join(", "))
        .group_by("row", maintain_order=True)
        .agg(pl.struct("key", "value").alias("clean"))
    )
    found = rows.join(joined, on="row", how="left", maintain_order="left")
    empty = pl.lit([], pl.List(PAIR))
    return found.select(pl.when(pl.col("pair").is_not_null()).then(pl.coalesce("clean", empty))).to_series()


def _pairs_of(value: Any) -> list[dict[str, str | None]] | None:
    """Returns pairs for an object, lists of {key, value}, {name, value} or pairs; None for anything else."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif all(isinstance(part, dict) and "key" in part for part in value):
        pairs = [(part["key"], part.get("value")) for part in value]
    elif all(isinstance(part, dict) and {"name", "value"} <= part.keys() for part in value):
        pairs = [(part["name"], part["value"]) for part in value]
    elif all(isinstance(part, list | tuple) and len(part) == 2 for part in value):
        pairs = [tuple(part) for part in value]
    else:
        return None
    return [{"key": _value_of(key), "value": _value_of(each)} for key, each in pairs]


def _value_of(value: Any) -> str | None:
    """Returns the text of an attribute's value, lists joined."""
    if isinstance(value, list | tuple | set):
        return ", ".join(text for part in value if (text := _value_of(part)))
    return as_text(value)


def _parsed(texts: pl.Series, function: Callable[[Any], Any], dtype: pl.DataType | type[pl.String]) -> pl.Series:
    """Applies a function to the lists and objects that some distinct texts hold; null for other text."""
    distinct = texts.filter(texts.str.contains(NESTED)).unique()
    values = [(text, nested(text)) for text in distinct]
    found = [(text, function(value)) for text, value in values if isinstance(value, list | tuple | set | dict)]
    table = pl.DataFrame(
        {
            "text": pl.Series([text for text, _ in found], dtype=pl.String),
            "found": pl.Series([v for _, v in found], dtype=dtype),
        }
    )
    return pl.DataFrame({"text": texts}).join(table, on="text", how="left", maintain_order="left")["found"]
