"""Counts over a catalogue's tables: what is there for the stages to learn from. A Parquet table is not read whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from storage import files, tables
from storage.text_tables import said

SAMPLED = 20_000  # rows


@dataclass(frozen=True)
class Survey:
    """Counts over the tables of a catalogue.

    Attributes:
        uri: of the catalogue.
        items: rows of the items table.
        filled: by `title`, `description`, `media` and `attributes`, the items that have one.
        bare: items with neither a title, nor a description, nor a medium.
        unnamed: rows without an id, or with the id of another row.
        usable: items that are neither.
        unread: columns of the items table that no stage reads.
        events: rows of the log; None without a log.
        labels: the lowest and the highest label; None where no event has one.
        columns: of the log.
    """

    uri: str
    items: int
    filled: dict[str, int]
    bare: int
    unnamed: int
    usable: int
    unread: tuple[str, ...] = ()
    events: int | None = None
    labels: tuple[float, float] | None = None
    columns: tuple[str, ...] = ()

    @property
    def lacking(self) -> frozenset[str]:
        """Of `title` and `caption`, what no item can have; captions are read off media."""
        return frozenset(name for name, of in (("title", "title"), ("caption", "media")) if not self.filled[of])


def survey(catalog: str, *, label: str = "label", media: str | None = None) -> Survey:
    """Counts in the tables of a catalogue that `storage.tables.check` accepts.

    Args:
        catalog: URI of the catalogue.
        label: column of the log that labels stand in.
        media: where the media of an item lie by its id, for an items table that does not say so.

    Raises:
        UserError: ids are lists or objects.
    """
    uri = tables.find(catalog, "items")
    assert uri is not None  # noqa: S101 - checked
    items = scan(uri)
    schema, known = items.collect_schema(), tables.KNOWN["items"][1:]
    tables.check_ids(uri, schema, "item_id")
    has = filled(schema, media)
    ids = said(pl.col("item_id").cast(pl.String))
    counted = items.select(ids, **has).select(
        pl.len().alias("items"),
        pl.col(*has).sum(),
        named=pl.col("item_id").drop_nulls().n_unique(),
        usable=pl.col("item_id").filter(~pl.col("bare")).drop_nulls().n_unique(),
    )
    row = counted.collect(engine="streaming").row(0, named=True)
    unread = tuple(name for name in schema if name not in tables.KNOWN["items"])
    by_column = {name: int(row[name]) for name in known}
    unnamed = row["items"] - row["named"]
    found = Survey(catalog, row["items"], by_column, int(row["bare"]), unnamed, row["usable"], unread)
    log_uri = tables.find(catalog, "interactions")
    if log_uri is None:
        return found
    log = scan(log_uri)
    schema = log.collect_schema()
    tables.check_ids(log_uri, schema, "user_id", "item_id")
    values = labels_of(schema, label)
    values = values.filter(values.is_finite())
    counted = log.select(events=pl.len(), low=values.min(), high=values.max())
    events, low, high = counted.collect(engine="streaming").row(0)
    labels = None if low is None else (low, high)
    return replace(found, events=events, labels=labels, columns=tuple(schema))


def labels_of(schema: pl.Schema, column: str) -> pl.Expr:
    """Returns the values of a column of the log as numbers, null where they are none."""
    if column not in schema or schema[column].is_nested():
        return pl.lit(None, pl.Float64)
    return pl.col(column).cast(pl.Float64, strict=False)


def filled(schema: pl.Schema, media: str | None = None) -> dict[str, pl.Expr]:
    """Returns what tells whether an item has a title, …, or is `bare`; see `Survey` and `survey`."""
    known = tables.KNOWN["items"][1:]
    has = {name: says(name, schema) for name in known}
    if media is not None:
        has["media"] |= ~has["media"].any()
    return {**has, "bare": ~(has["title"] | has["description"] | has["media"])}


def scan(uri: str) -> pl.LazyFrame:
    """Returns a table as it is; of Parquet only what is asked for is read."""
    if not uri.endswith(".parquet"):
        return tables.scan(uri).rows.lazy()
    fs, path = files.filesystem(uri)
    table = pl.scan_parquet(path) if "file" in fs.protocol else pl.scan_pyarrow_dataset(files.dataset(uri))
    return table.select(tables.named(table.collect_schema().names()))


def sample(uri: str) -> pl.DataFrame:
    """Returns about `SAMPLED` rows of a table, and reads hardly more of Parquet.

    Those of text are evenly spread, those of Parquet the first of the first, the middle and the last row group.
    """
    if not uri.endswith(".parquet"):
        rows = tables.scan(uri).rows
        return rows.gather_every(max(1, rows.height // SAMPLED))
    groups = [group for part in files.dataset(uri).get_fragments() for group in part.split_by_row_group()]
    chosen = sorted({0, len(groups) // 2, len(groups) - 1})
    rows = pl.concat(pl.DataFrame(groups[at].head(SAMPLED // len(chosen))) for at in chosen)
    return rows.select(tables.named(rows.columns))


def says(name: str, schema: pl.Schema) -> pl.Expr:
    """Returns whether the cells of a column hold anything; those of a column that is not there do not."""
    if name not in schema:
        return pl.lit(value=False)
    column, dtype = pl.col(name), schema[name]
    if dtype == pl.String:
        column = said(column).is_not_null()
    elif isinstance(dtype, pl.List):
        column = column.list.len() > 0
    else:
        column = column.is_not_null()
    return column.fill_null(value=False)
