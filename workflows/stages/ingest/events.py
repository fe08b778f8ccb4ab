"""The events of a log in canonical form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from storage import tables
from storage.errors import UserError
from storage.text_tables import as_number, numeric
from workflows.catalogs.canonical import LOG
from workflows.stages.ingest import times
from workflows.stages.ingest.texts import filled, ids, like

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
RATINGS = ("rating", "ratings", "stars", "star_rating", "score")  # columns that hold labels under another name
EXAMPLES = 3  # values that a sentence shows


class Loss(NamedTuple):
    """Events that were dropped for one reason, with values of some of them (of lines, what is wrong with them)."""

    events: int
    examples: Sequence[object] = ()


class Form(NamedTuple):
    """How all of a log is read, as its first rows say.

    Attributes:
        order: timestamps only order a user's events, see `times.parse`.
        digits: of dates that are written as numbers, see `times.date_digits`.
        label: whether there are labels.
        context: columns that become context features.
        known: columns of which the first rows have a value, and these.
    """

    order: bool
    digits: tuple[int, ...]
    label: bool
    context: tuple[str, ...]
    known: set[str]

    def late(self, raw: pl.DataFrame, *, as_text: bool) -> set[str]:
        """Returns the columns with a value that would be read if the first rows had one; numbers may stand as text."""
        new = filled(raw).drop(self.known, strict=False)
        typed = numeric(new, ";") if as_text else {}  # commas may be decimal ones
        return {*context_columns(new.schema | dict.fromkeys(typed, pl.Float64())), *({"label"} & set(new.columns))}

    def columns(self, label: str) -> list[str]:
        """Returns the columns that are read, labels in one of this name."""
        return ["user_id", "item_id", "timestamp", label, *self.context]

    def completed(self, raw: pl.DataFrame) -> pl.DataFrame:
        """Adds columns that some rows of JSON Lines lack."""
        lacking = [name for name in self.columns("label") if name not in raw.columns]
        return raw.with_columns(pl.lit(None).alias(name) for name in lacking if name != "label" or self.label)


def form_of(raw: pl.DataFrame, *, order: bool) -> Form:
    """Returns how a log is read, by rows of it."""
    context = tuple(context_columns(raw.schema))
    known, label = {*filled(raw).columns, *context, "label"}, "label" in raw.columns
    return Form(order, times.date_digits(raw["timestamp"]), label, context, known if label else known - {"label"})


def canonical_events(raw: pl.DataFrame, source: str, *, order: bool = False) -> pl.DataFrame:
    """Gives a whole interactions table, or a sample of one, the canonical columns, see `read_events`.

    Raises:
        UserError: as `read_events`, or not one timestamp, or not one label, can be read.
    """
    events = read_events(raw, source, form_of(raw, order=order))
    for name in events.columns:
        if name in ("timestamp", "label") and events.height and events[name].is_null().all():
            found = _examples(raw[name])[:1]
            remedy = times.remedy(found[0] if found else None) if name == "timestamp" else LABELS
            shown = _such_as(found)
            raise UserError(f"{source} has no value in its column {name!r} that can be read{shown}: {remedy}.")
    return events


def read_events(raw: pl.DataFrame, source: str, form: Form) -> pl.DataFrame:
    """Gives rows of an interactions table the canonical columns: user_id, item_id, timestamp, label?, context columns.

    Other columns are left out. A value that cannot be read, or is not finite, becomes null. Users whose ids differ in
    `.0` alone are one.

    Args:
        raw: the rows as they are.
        source: name of the table in errors.
        form: how it is read.

    Raises:
        UserError: ids are lists, objects or bytes, or labels lie outside 0 … 1.
    """
    tables.check_ids(source, raw.schema, "user_id", "item_id")
    label = ["label"] if form.label else []
    events = raw.select(
        user_ids(raw["user_id"]),
        ids(raw["item_id"], whole=False),
        times.parse(raw["timestamp"], order=form.order, digits=form.digits),
        *(number(raw[name]) for name in [*label, *form.context]),
    )
    if label:
        outside = events["label"].filter(~events["label"].is_between(0, 1))
        if len(outside):
            raise UserError(
                f"{source} has labels outside 0 … 1 (such as {outside[0]:g}): write 1 for a click or like and 0 for "
                "none, or set stages.ingest.positive_from, the least rating that counts as liked."
            )
    return events


def together(losses: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, Loss]:
    """Returns the losses of several parts as those of the whole; they may have become lists, in JSON."""
    found: dict[str, Loss] = {}
    for part in losses:
        for reason, (events, examples) in part.items():
            before = found.get(reason, Loss(0))
            new = [one for one in examples if one not in before.examples]
            shown = [*before.examples, *new][: 1 if reason == "unreadable_row" else EXAMPLES]
            found[reason] = Loss(before.events + events, shown)
    return found


def _examples(values: pl.Series) -> list[Any]:
    """Returns some distinct values as JSON can hold them."""
    values = values.drop_nulls()
    values = values.filter(values.is_finite()) if values.dtype.is_float() else values
    return list(json.loads(json.dumps(values.unique(maintain_order=True).head(EXAMPLES).to_list(), default=str)))


def user_ids(values: pl.Series) -> pl.Series:
    """Returns the ids of users, without `.0` behind whole numbers: no table of users says which of them are floats."""
    return ids(values, whole=False).str.replace(r"^(-?\d+)\.0$", "$1")


def context_columns(schema: pl.Schema) -> list[str]:
    """Returns the columns of a log that become context features: numbers, but for ids and ratings by their names.

    Ratings are known after the event alone, and the service has none.
    """
    numbers = (name for name, dtype in schema.items() if dtype.is_numeric() or dtype == pl.Boolean)
    no_features = {*tables.KNOWN["interactions"], *RATINGS}
    return sorted(name for name in numbers if name.lower() not in no_features and not re.search(IDS, name))


def clean_events(
    events: pl.DataFrame, items: np.ndarray, raw: pl.DataFrame, bad: list[str]
) -> tuple[pl.DataFrame, dict[str, Loss]]:
    """Drops unusable events; returns the rest, and what was dropped for each reason.

    An item_id that differs from that of an item in `.0` alone is taken for it.

    Args:
        events: of `read_events`.
        items: hashes of the ids of the usable items, ascending.
        raw: the rows that the events were read from.
        bad: of each line among them that is no row, what is wrong with it.
    """
    now = datetime.now(UTC)
    events = events.with_columns(like(events["item_id"], items))
    reasons = {
        "no_user_id": pl.col("user_id").is_null(),
        "unknown_item": pl.col("item_id").is_null(),
        "no_timestamp": pl.col("timestamp").is_null(),
        "future_timestamp": pl.col("timestamp") > now,
        "no_label": pl.col("label").is_null() if "label" in events.columns else pl.lit(value=False),
    }
    dropped = {"unreadable_row": Loss(len(bad), bad[:1])}
    columns = events.columns
    events = events.with_row_index("")  # which no column of a table is called
    for reason, condition in reasons.items():
        lost = events.filter(condition)
        dropped[reason] = Loss(0)
        if lost.height:
            dropped[reason] = Loss(lost.height, _examples(raw[COLUMNS[reason]].gather(lost[""])))
            events = events.filter(~condition)
    unique = events.select(columns).unique(maintain_order=True)
    dropped["duplicate_event"] = Loss(events.height - unique.height)
    return unique, dropped


def told(dropped: dict[str, Loss]) -> str:
    """Returns the reasons for which events were dropped, the commonest first, each with an example; empty without."""
    lost = sorted(((loss, reason) for reason, loss in dropped.items() if loss.events), key=lambda pair: -pair[0].events)
    return ", ".join(f"{loss.events} {reason}{_such_as(loss.examples)}" for loss, reason in lost)


def check_dropped(source: str, kept: int, dropped: dict[str, Loss], limit: float, item_ids: list[str]) -> None:
    """Refuses a log that loses too much to be what was meant; some ids of items show how they are written.

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
        remedy += f" ({', '.join(map(repr, item_ids[:EXAMPLES]))})"
    counted = f"{source} has {kept} usable of {kept + lost} events, {loss.events} dropped as {reason}"
    raised = ", or raise stages.ingest.max_dropped_share" if kept else ""
    raise UserError(f"{counted}{_such_as(loss.examples)}: {remedy}{raised}.")


def to_arrow(events: pl.DataFrame) -> pa.Table:
    """Arrow with the contract's types; polars would write large strings, which do not join with plain ones."""
    table = events.to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.cast(pa.schema([(name, LOG.get(name, pa.float32())) for name in table.column_names]))


def _such_as(examples: Iterable[object]) -> str:
    shown = ", ".join(repr(one) if isinstance(one, str | float) else str(one) for one in examples)
    return f" (such as {shown})" if shown else ""


def number(column: pl.Series) -> pl.Series:
    """Returns numbers, also those that were written as text, as float32; null where a value is none or not finite."""
    column = as_number(column, ",", thousands=False) if column.dtype == pl.String else column
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        return pl.Series(column.name, [None] * len(column), pl.Float32)
    number = column.cast(pl.Float32, strict=False)
    return number.set(~number.is_finite(), None)
