"""Counts over a catalogue's tables, block by block: what is there for the stages to learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from storage import blocks, files, tables
from storage.text_tables import said
from workflows.catalogs.canonical import GIVEN

SAMPLED = 20_000  # rows
VECTORS = ("embedding", "image_vector", "text_vector")


@dataclass(frozen=True)
class Survey:
    """Counts over the tables of a catalogue.

    Attributes:
        uri: of the catalogue.
        items: rows of the items table.
        filled: by `title`, `description`, `media`, `attributes` and the columns of `GIVEN`, the items that have one.
        bare: items with neither a title, nor a description, nor a medium, nor anything given.
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
        """Of `title` and `caption`, what no item can have; captions are given, or read off media for an embedding."""
        captions = self.filled["caption"] or (self.filled["media"] and not self.filled["embedding"])
        return frozenset(name for name, there in (("title", self.filled["title"]), ("caption", captions)) if not there)


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
    read, names = (*tables.KNOWN["items"], *GIVEN), blocks.columns(uri)
    full = blocks.complete(uri, VECTORS)  # which take long to read
    counts: Counter[str] = Counter()
    hashes, bare = [np.empty(0, np.uint64)], [np.empty(0, bool)]  # of the rows with an id
    for block in blocks.read(uri, [name for name in read if name not in full]):
        rows = block.rows if "item_id" in block.rows.columns else block.rows.with_columns(item_id=pl.lit(None))
        tables.check_ids(uri, rows.schema, "item_id")
        rows = rows.select(said(pl.col("item_id").cast(pl.String)), **filled(rows.schema))
        counts.update(items=rows.height, **rows.select(pl.col(*read[1:], "bare").sum()).row(0, named=True))
        rows = rows.drop_nulls("item_id")
        hashes.append(rows["item_id"].hash().to_numpy())
        bare.append(rows["bare"].to_numpy())
    of_id, without = np.concatenate(hashes), np.concatenate(bare)
    counts.update(dict.fromkeys(full, counts["items"]))
    if full:
        counts["bare"], without = 0, np.zeros_like(without)
    if media is not None and not counts["media"]:
        counts["media"], counts["bare"], without = counts["items"], 0, np.zeros_like(without)
    found = Survey(
        catalog,
        counts["items"],
        {name: counts[name] for name in read[1:]},
        counts["bare"],
        counts["items"] - len(np.unique(of_id)),
        len(np.unique(of_id[~without])),
        tuple(name for name in names if name not in read),
    )
    log_uri = tables.find(catalog, "interactions")
    return found if log_uri is None else _with_log(found, log_uri, label)


def _with_log(found: Survey, uri: str, label: str) -> Survey:
    """Adds the counts of a log."""
    schema = blocks.first(uri).rows.schema
    tables.check_ids(uri, schema, "user_id", "item_id")
    if label not in schema and blocks.is_parquet(uri):
        return replace(found, events=blocks.rows_about(uri), columns=tuple(schema))
    events, ends = 0, list[float]()
    for block in blocks.read(uri, [label]):
        events += block.rows.height
        values = labels_of(block.rows.schema, label)
        values = values.filter(values.is_finite())
        low, high = block.rows.select(low=values.min(), high=values.max()).row(0)
        ends += [] if low is None else [low, high]
    return replace(found, events=events, labels=(min(ends), max(ends)) if ends else None, columns=tuple(schema))


def labels_of(schema: pl.Schema, column: str) -> pl.Expr:
    """Returns the values of a column of the log as numbers, null where they are none."""
    if column not in schema or schema[column].is_nested():
        return pl.lit(None, pl.Float64)
    return pl.col(column).cast(pl.Float64, strict=False)


def filled(schema: pl.Schema) -> dict[str, pl.Expr]:
    """Returns what tells whether an item has a title, …, or is `bare`; see `Survey`."""
    has = {name: says(name, schema) for name in (*tables.KNOWN["items"][1:], *GIVEN)}
    return {**has, "bare": ~pl.any_horizontal(has[name] for name in ("title", "description", "media", *GIVEN))}


def scan(uri: str) -> pl.LazyFrame:
    """Returns a table as it is; of Parquet only what is asked for is read."""
    if not blocks.is_parquet(uri):
        return blocks.scan(uri).rows.lazy()
    local = "file" in files.filesystem(uri)[0].protocol
    parts = [
        pl.scan_parquet(files.filesystem(part)[1]) if local else pl.scan_pyarrow_dataset(blocks.dataset(part))
        for part in blocks.files_of(uri)
    ]
    parts = [part.with_columns(blocks.plain(part.collect_schema())) for part in parts]
    table = pl.concat(parts, how="diagonal_relaxed")  # ids may be numbers here and text there
    return table.select(blocks.named(table.collect_schema().names()))


def sample(uri: str) -> pl.DataFrame:
    """Returns about `SAMPLED` rows of a table.

    Those of text are spread over its first block, those of Parquet the first of the first, the middle and the last row
    group.
    """
    if not blocks.is_parquet(uri):
        rows = blocks.first(uri).rows
        return rows.gather_every(max(1, rows.height // SAMPLED))
    groups = [group for part in blocks.dataset(uri).get_fragments() for group in part.split_by_row_group()]
    chosen = sorted({0, len(groups) // 2, len(groups) - 1})
    parts = [pl.DataFrame(groups[at].head(SAMPLED // len(chosen))) for at in chosen]
    rows = blocks.as_one([part.with_columns(blocks.plain(part.schema)) for part in parts])
    return rows.select(blocks.named(rows.columns))


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
