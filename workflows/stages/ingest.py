"""Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar

import polars as pl
import pyarrow as pa
from pydantic import Field

from operators.base import REJECTED, rejects_table
from storage import files, tables
from storage.errors import UserError
from workflows.catalogs.canonical import ITEMS
from workflows.catalogs.survey import Survey
from workflows.engine.stage import Context, Result, Stage, StageConfig

MEDIUM = pl.Struct({"uri": pl.String, "kind": pl.String})
PAIR = pl.Struct({"key": pl.String, "value": pl.String})
ITEM_TYPES = ITEMS.remove(ITEMS.get_field_index("attributes"))
YEARS = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # what Python and its plots can show
FORMS = {
    "timestamp": "write ISO 8601 text or Unix time",
    "label": "write 1 for a click or like and 0 for none, or leave the column out",
}
REMEDIES = {
    "no_user_id": "fill in user_id",
    "unknown_item": "write the log's item_id as the items table does",
    "no_timestamp": "write timestamps as ISO 8601 text or Unix time",
    "future_timestamp": "write Unix time in seconds, milliseconds or microseconds and mend the clock",
    "no_label": "write a label for every event or leave the column out",
    "duplicate_event": "write every event once, with the time at which it happened",
}
VIDEO_SUFFIX = r"(?i)\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|gifv)$"


class Config(StageConfig):
    """Settings of ingest.

    Attributes:
        media: where the one medium of an item lies by its id, such as `pictures/{item_id}.jpg`; for an items table
            without a column `media`.
        label: column of the log that labels stand in.
        positive_from: the least label that counts as 1, for ratings; all below count as 0.
        max_reject_share: share of rejected items past which the run fails.
        max_dropped_share: share of dropped events, duplicates included, past which the run fails.
    """

    media: str | None = Field(None, pattern=r"\{item_id\}")
    label: str = "label"
    positive_from: float | None = None
    max_reject_share: float = Field(0.1, ge=0, le=1)
    max_dropped_share: float = Field(0.5, ge=0, le=1)

    resources: ClassVar[frozenset[str]] = frozenset({"max_reject_share", "max_dropped_share"})

    def with_media(self, items: pl.DataFrame) -> pl.DataFrame:
        """Adds the column `media` to a table as it was read, where the definition says where they lie."""
        if self.media is None or "media" in items.columns:
            return items
        before, _, after = self.media.partition("{item_id}")
        uri = pl.format("{}{}{}", pl.lit(before), pl.col("item_id").cast(pl.String).str.strip_chars(), pl.lit(after))
        return items.with_columns(media=pl.concat_list(uri))

    def with_labels(self, log: pl.DataFrame) -> pl.DataFrame:
        """Makes the column `label` of a log as it was read, where the definition says how."""
        if self.label != "label":
            log = log.drop("label", strict=False).rename({self.label: "label"})
        if self.positive_from is None or "label" not in log.columns:
            return log
        rating = pl.col("label").cast(pl.Float64, strict=False)
        return log.with_columns(label=(rating >= self.positive_from).cast(pl.Float32))


class IngestStage(Stage[Config]):
    """Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

    config_type = Config
    version = 2
    seeded = False

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds ids that are none, and labels that are none.

        Raises:
            UserError: too many items have no id of their own, labels lie outside 0 … 1, or their column is not there.
        """
        if catalog.unnamed > config.max_reject_share * catalog.items:
            raise UserError(
                f"{catalog.unnamed:,} of {catalog.items:,} items have no item_id, or that of another item: give each "
                "its own, or raise stages.ingest.max_reject_share."
            )
        if catalog.events and config.label != "label" and config.label not in catalog.columns:
            raise UserError(f"stages.ingest.label is {config.label!r}: the log has {', '.join(catalog.columns)}.")
        low, high = catalog.labels or (0.0, 1.0)
        if config.positive_from is None and not 0 <= low <= high <= 1:
            raise UserError(
                f"The labels of the log go from {low:g} to {high:g}: write stages.ingest.positive_from, the least one "
                "that counts as liked, or labels of 1 and 0."
            )
        return []

    def run(self, config: Config, context: Context) -> Result:
        """Writes `catalog/items`, `catalog/interactions` (where the catalogue has them) and `rejects/ingest`.

        Raises:
            UserError: a table has nothing that can be used, or the log loses more events than allowed.
        """
        uri = tables.find(context.catalog, "items")
        assert uri is not None  # noqa: S101 - preflight has seen it
        raw = tables.scan(uri)
        items, rejects = split_items(canonical_items(config.with_media(raw), uri))
        if items.is_empty():
            raise UserError(f"{uri} has no usable item: every item_id is empty.")
        timestamps = tables.timestamps(context.catalog)
        metrics: dict[str, object] = {} if timestamps is None else {"timestamps": timestamps}
        if timestamps == "order":
            context.log(
                "ingest: the timestamps tell the order of a user's events, not the time: they do not compare users"
            )
        log_uri = tables.find(context.catalog, "interactions")
        if log_uri is not None:
            raw_log = config.with_labels(tables.scan(log_uri))
            events, dropped = clean_events(canonical_events(raw_log, log_uri), items["item_id"])
            check_dropped(log_uri, events.height, dropped, config.max_dropped_share)
            context.run.write_table(to_arrow_events(events), "catalog", "interactions")
            metrics["interactions"] = {
                "rows_in": events.height + sum(dropped.values()),
                "rows_out": events.height,
                "dropped": dropped,
            }
            if lost := ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count):
                context.log(f"ingest: dropped of {context.catalog}'s interactions {lost}")
        else:
            files.remove(context.run.uri("catalog", "interactions"))  # of an earlier state of the catalogue
        context.run.write_table(_to_arrow_items(items), "catalog", "items")
        context.run.write_table(rejects_table(rejects, stage="ingest"), "rejects", "ingest")
        return Result(rows_in=raw.height, rows_out=items.height, rejected=rejects.height, metrics=metrics)


def canonical_items(raw: pl.DataFrame, source: str) -> pl.DataFrame:
    """Gives an items table the canonical columns and types (DESIGN of the catalogue: README, "Your own catalogue").

    Raises:
        UserError: a column has a type that cannot be read as what it should be.
    """
    missing = [pl.lit(None).alias(name) for name in tables.KNOWN["items"] if name not in raw.columns]
    raw = raw.with_columns(missing)
    with _wrong_types(source):
        return raw.select(
            pl.col("item_id").cast(pl.String).str.strip_chars(),
            pl.col("title", "description").cast(pl.String),
            _media(raw.schema["media"]).alias("media"),
            _attributes(raw.schema["attributes"]).alias("attributes"),
        )


@contextmanager
def _wrong_types(source: str) -> Iterator[None]:
    """Words polars' errors about a table as one of the user's."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{source} has a column of the wrong type: {' '.join(str(error).split())[:200]}.") from error


def split_items(items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Usable items, and rejects (item_id, severity, code, detail); of equal ids the first row stays."""
    empty = pl.col("item_id").fill_null("") == ""
    judged = items.with_columns(
        code=pl.when(empty)
        .then(pl.lit("no_item_id"))
        .when(~pl.col("item_id").is_first_distinct())
        .then(pl.lit("duplicate_item_id"))
    ).with_row_index("row")
    rejects = judged.filter(pl.col("code").is_not_null()).select(
        "item_id",
        severity=pl.lit(REJECTED),
        code="code",
        detail=pl.format("row {} of the items table", pl.col("row")),
    )
    return judged.filter(pl.col("code").is_null()).drop("code", "row"), rejects


def canonical_events(raw: pl.DataFrame, source: str) -> pl.DataFrame:
    """Gives an interactions table the canonical columns: user_id, item_id, timestamp, label?, numeric context columns.

    Timestamps may be of a timestamp type, ISO 8601 text, or Unix time in seconds, milliseconds or microseconds. Columns
    that are not numeric and not known are left out. A value that cannot be read, or is not finite, becomes null.

    Raises:
        UserError: not one timestamp, or not one label, can be read; labels lie outside 0 … 1.
    """
    schema = raw.schema
    context = [
        n for n, t in schema.items() if n not in tables.KNOWN["interactions"] and (t.is_numeric() or t == pl.Boolean)
    ]
    label = ["label"] if "label" in schema else []
    with _wrong_types(source):
        events = raw.select(
            pl.col("user_id", "item_id").cast(pl.String, strict=False).str.strip_chars(),
            _timestamp(schema["timestamp"]).alias("timestamp"),
            *(_number(name, schema[name]) for name in [*label, *sorted(context)]),
        )
    for name in ["timestamp", *label]:
        if events.height and events[name].is_null().all():
            raise UserError(f"{source} has no value in its column {name!r} that can be read: {FORMS[name]}.")
    if label and not events["label"].drop_nulls().is_between(0, 1).all():
        raise UserError(f"{source} has labels outside 0 … 1: write 1 for a click or like and 0 for none.")
    return events


def clean_events(events: pl.DataFrame, item_ids: pl.Series) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drops unusable events; return the rest in time order and the number dropped for each reason."""
    now = datetime.now(UTC)
    reasons = {
        "no_user_id": pl.col("user_id").fill_null("") == "",
        "unknown_item": ~pl.col("item_id").is_in(item_ids.implode()).fill_null(value=False),
        "no_timestamp": pl.col("timestamp").is_null(),
        "future_timestamp": pl.col("timestamp") > now,
        "no_label": pl.col("label").is_null() if "label" in events.columns else pl.lit(value=False),
    }
    dropped: dict[str, int] = {}
    for reason, condition in reasons.items():
        kept = events.filter(~condition)
        dropped[reason] = events.height - kept.height
        events = kept
    unique = events.unique(maintain_order=True)
    dropped["duplicate_event"] = events.height - unique.height
    return unique.sort("timestamp", "user_id", "item_id"), dropped


def check_dropped(source: str, kept: int, dropped: dict[str, int], limit: float) -> None:
    """Refuses a log that loses too much to be what was meant.

    Raises:
        UserError: no event is left, or the dropped share is above the limit.
    """
    lost = sum(dropped.values())
    if kept and lost <= limit * (kept + lost):
        return
    if not lost:
        raise UserError(f"{source} has no rows: write events there, or remove the file to work on items alone.")
    reason = max(dropped, key=lambda name: dropped[name])
    loss = f"{source} has {kept} usable of {kept + lost} events, {dropped[reason]} dropped as {reason}"
    raised = ", or raise stages.ingest.max_dropped_share" if kept else ""
    raise UserError(f"{loss}: {REMEDIES[reason]}{raised}.")


def _media(dtype: pl.DataType) -> pl.Expr:
    """Lists of {uri, kind}, lists of URIs, or text with URIs parted by `|`; a missing kind follows from the suffix.

    Empty URIs are left out.
    """
    column = pl.col("media")
    if dtype == pl.String:
        column = column.str.split("|")
    if dtype == pl.Null:
        return column.cast(pl.List(MEDIUM))
    uri, kind = pl.element(), pl.lit(None, pl.String)
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        kind = uri.struct.field("kind") if "kind" in dtype.inner.to_schema() else kind
        uri = uri.struct.field("uri")
    uri = uri.cast(pl.String).str.strip_chars()
    guess = pl.when(uri.str.contains(VIDEO_SUFFIX)).then(pl.lit("video")).otherwise(pl.lit("image"))
    known = pl.when(kind.is_in(["image", "video"])).then(kind)
    return column.list.eval(pl.struct(uri=uri, kind=pl.coalesce(known, guess)).filter(uri != ""))


def _attributes(dtype: pl.DataType) -> pl.Expr:
    """Maps (lists of {key, value}) or objects with one field per key; pairs without a key or a value are left out."""
    column = pl.col("attributes")
    if isinstance(dtype, pl.Struct) and not dtype.fields:
        return pl.lit(None, pl.List(PAIR))
    if isinstance(dtype, pl.Struct):
        pairs = [
            pl.struct(key=pl.lit(field.name), value=column.struct.field(field.name).cast(pl.String))
            for field in dtype.fields
        ]
        return pl.concat_list(pairs).list.filter(pl.element().struct.field("value").is_not_null())
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct) and "key" not in dtype.inner.to_schema():
        raise pl.exceptions.SchemaError("attributes must be pairs of key and value")
    pair = pl.element().struct
    return column.cast(pl.List(PAIR)).list.filter(pair.field("key").is_not_null() & pair.field("value").is_not_null())


def _timestamp(dtype: pl.DataType) -> pl.Expr:
    column = pl.col("timestamp")
    if dtype == pl.String:
        stamp = pl.coalesce(column.str.to_datetime(time_unit="us", time_zone="UTC", strict=False), _unix_time(column))
    elif dtype.is_numeric():
        stamp = _unix_time(column)
    elif isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        stamp = column.dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC"), strict=False)
    elif isinstance(dtype, (pl.Datetime, pl.Date)):
        stamp = column.cast(pl.Datetime("us"), strict=False).dt.replace_time_zone("UTC")
    else:
        return pl.lit(None, pl.Datetime("us", "UTC"))
    return pl.when(stamp.is_between(*YEARS)).then(stamp)


def _unix_time(column: pl.Expr) -> pl.Expr:
    number = column.cast(pl.Float64, strict=False)
    factor = pl.when(number > 1e14).then(1.0).when(number > 1e11).then(1e3).otherwise(1e6)
    return (number * factor).cast(pl.Int64, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _number(name: str, dtype: pl.DataType) -> pl.Expr:
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String)):
        return pl.lit(None, pl.Float32).alias(name)
    number = pl.col(name).cast(pl.Float32, strict=False)
    return pl.when(number.is_finite()).then(number).alias(name)


def _to_arrow_items(items: pl.DataFrame) -> pa.Table:
    """Arrow with the contract's types; polars knows no maps, so `attributes` is built from its lists of pairs."""
    table = items.to_arrow(compat_level=pl.CompatLevel.oldest())
    lists = table["attributes"].cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
    pairs = pa.concat_arrays(lists.chunks)
    keys, values = (pairs.values.field(name) for name in ("key", "value"))
    attributes = pa.MapArray.from_arrays(pairs.offsets, keys, values, mask=pairs.is_null())
    return table.drop_columns("attributes").cast(ITEM_TYPES).append_column("attributes", attributes)


def to_arrow_events(events: pl.DataFrame) -> pa.Table:
    """Arrow with the contract's types; polars would write large strings, which do not join with plain ones."""
    table = events.to_arrow(compat_level=pl.CompatLevel.oldest())
    kinds = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.timestamp("us", "UTC")}
    return table.cast(pa.schema([(name, kinds.get(name, pa.float32())) for name in table.column_names]))
