"""The events of a log in canonical form."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from storage import tables
from storage.errors import UserError
from storage.text_tables import typed
from workflows.stages.ingest import times
from workflows.stages.ingest.texts import ids, like

REMEDIES = {
    "unreadable_row": "give every line as many fields as the header has",
    "no_user_id": "fill in user_id",
    "unknown_item": "write the log's item_id as the items table does",
    "no_timestamp": times.REMEDY,
    "future_timestamp": "write Unix time in seconds, milliseconds or microseconds and mend the clock",
    "no_label": "write a label for every event or leave the column out",
    "duplicate_event": "write every event once, with the time at which it happened",
}
COLUMNS = {"no_user_id": "user_id", "unknown_item": "item_id", "no_label": "label"}
COLUMNS |= dict.fromkeys(("no_timestamp", "future_timestamp"), "timestamp")  # the value that a reason is about
LABELS = "write 1 for a click or like and 0 for none, or leave the column out"
IDS = r"(^|[\W_])[iI][dD]$|[a-z]I[dD]$"  # names such as id, session_id, Order ID, visitId
EXAMPLES = 3  # values that a sentence shows


class Loss(NamedTuple):
    """Events that were dropped for one reason, with values of some of them (of lines, what is wrong with them)."""

    events: int
    examples: tuple[object, ...] = ()


def canonical_events(raw: pl.DataFrame, source: str, *, order: bool = False) -> pl.DataFrame:
    """Gives an interactions table the canonical columns: user_id, item_id, timestamp, label?, numeric context columns.

    Other columns are left out. A value that cannot be read, or is not finite, becomes null. Users whose ids differ in
    `.0` alone are one.

    Args:
        raw: the table as it is.
        source: its name in errors.
        order: timestamps only order a user's events, see `times.parse`.

    Raises:
        UserError: ids are lists, objects or bytes; not one timestamp, or not one label, can be read; labels lie outside
            0 … 1.
    """
    schema = raw.schema
    tables.check_ids(source, schema, "user_id", "item_id")
    context = context_columns(schema)
    label = ["label"] if "label" in schema else []
    events = raw.select(
        user_ids(raw["user_id"]),
        ids(raw["item_id"], whole=False),
        times.parse(raw["timestamp"], order=order),
        *(number(raw[name]) for name in [*label, *context]),
    )
    for name in ["timestamp", *label]:
        if events.height and events[name].is_null().all():
            found = raw[name].drop_nulls()[:1].to_list()
            remedy = times.remedy(found[0] if found else None) if name == "timestamp" else LABELS
            shown = _such_as(found)
            raise UserError(f"{source} has no value in its column {name!r} that can be read{shown}: {remedy}.")
    if label:
        outside = events["label"].filter(~events["label"].is_between(0, 1))
        if len(outside):
            raise UserError(
                f"{source} has labels outside 0 … 1 (such as {outside[0]:g}): write 1 for a click or like and 0 for "
                "none, or set stages.ingest.positive_from, the least rating that counts as liked."
            )
    return events


def user_ids(values: pl.Series) -> pl.Series:
    """Returns the ids of users, without `.0` behind whole numbers: no table of users says which of them are floats."""
    return ids(values, whole=False).str.replace(r"^(-?\d+)\.0$", "$1")


def context_columns(schema: pl.Schema) -> list[str]:
    """Returns the columns of a log that become context features: numbers, but for those whose names say id."""
    numbers = (name for name, dtype in schema.items() if dtype.is_numeric() or dtype == pl.Boolean)
    return sorted(name for name in numbers if name not in tables.KNOWN["interactions"] and not re.search(IDS, name))


def clean_events(
    events: pl.DataFrame, item_ids: pl.Series, raw: pl.DataFrame, bad: list[str]
) -> tuple[pl.DataFrame, dict[str, Loss]]:
    """Drops unusable events; returns the rest in time order, and what was dropped for each reason.

    An item_id that differs from that of an item in `.0` alone is taken for it.

    Args:
        events: of `canonical_events`.
        item_ids: of the usable items.
        raw: the table that the events were read from, row by row.
        bad: of each line of it that is no row, what is wrong with it.
    """
    now = datetime.now(UTC)
    events = events.with_columns(like(events["item_id"], item_ids))
    reasons = {
        "no_user_id": pl.col("user_id").is_null(),
        "unknown_item": ~pl.col("item_id").is_in(item_ids.implode()).fill_null(value=False),
        "no_timestamp": pl.col("timestamp").is_null(),
        "future_timestamp": pl.col("timestamp") > now,
        "no_label": pl.col("label").is_null() if "label" in events.columns else pl.lit(value=False),
    }
    dropped = {"unreadable_row": Loss(len(bad), tuple(bad[:1]))}
    columns = events.columns
    events = events.with_row_index("")  # which no column of a table is called
    for reason, condition in reasons.items():
        lost = events.filter(condition)
        dropped[reason] = Loss(0)
        if lost.height:
            values = raw[COLUMNS[reason]].gather(lost[""]).drop_nulls().unique(maintain_order=True)
            dropped[reason] = Loss(lost.height, tuple(values[:EXAMPLES]))
            events = events.filter(~condition)
    unique = events.select(columns).unique(maintain_order=True)
    dropped["duplicate_event"] = Loss(events.height - unique.height)
    return unique.sort("timestamp", "user_id", "item_id"), dropped


def told(dropped: dict[str, Loss]) -> str:
    """Returns the reasons for which events were dropped, the commonest first, each with an example; empty without."""
    lost = sorted(((loss, reason) for reason, loss in dropped.items() if loss.events), key=lambda pair: -pair[0].events)
    return ", ".join(f"{loss.events} {reason}{_such_as(loss.examples)}" for loss, reason in lost)


def check_dropped(source: str, kept: int, dropped: dict[str, Loss], limit: float, item_ids: pl.Series) -> None:
    """Refuses a log that loses too much to be what was meant.

    Raises:
        UserError: no event is left, or the dropped share is above the limit.
    """
    lost = sum(loss.events for loss in dropped.values())
    if kept and lost <= limit * (kept + lost):
        return
    reason = max(dropped, key=lambda name: dropped[name].events)
    loss = dropped[reason]
    remedy = times.remedy(loss.examples[0]) if reason == "no_timestamp" and loss.examples else REMEDIES[reason]
    if reason == "unknown_item":
        remedy += f" ({', '.join(map(repr, item_ids.head(EXAMPLES)))})"
    counted = f"{source} has {kept} usable of {kept + lost} events, {loss.events} dropped as {reason}"
    raised = ", or raise stages.ingest.max_dropped_share" if kept else ""
    raise UserError(f"{counted}{_such_as(loss.examples)}: {remedy}{raised}.")


def to_arrow(events: pl.DataFrame) -> pa.Table:
    """Arrow with the contract's types; polars would write large strings, which do not join with plain ones."""
    table = events.to_arrow(compat_level=pl.CompatLevel.oldest())
    kinds = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.timestamp("us", "UTC")}
    return table.cast(pa.schema([(name, kinds.get(name, pa.float32())) for name in table.column_names]))


def _such_as(examples: Iterable[object]) -> str:
    shown = ", ".join(repr(one) if isinstance(one, str | float) else str(one) for one in examples)
    return f" (such as {shown})" if shown else ""


def number(column: pl.Series) -> pl.Series:
    """Returns numbers, also those that were written as text, as float32; null where a value is none or not finite."""
    column = typed(column, ",") if column.dtype == pl.String else column
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        return pl.Series(column.name, [None] * len(column), pl.Float32)
    number = column.cast(pl.Float32, strict=False)
    return number.set(~number.is_finite(), None)
