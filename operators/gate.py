"""Which items a costly model is asked about.

Conditional invocation of "A general framework for multimodal LLM-based multimedia understanding" (arXiv 2605.09338):
the model runs only where understanding the media is expected to pay. The paper leaves the rule open; ours is

    g(item) = has media and (metadata thin or item new or expected impressions high) and budget left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from operators.log.events import DAY_US
from storage.hashing import hash_ids, hash_order

OPEN, CACHED_ONLY = "open", "cached_only"
NO_MEDIA, NOT_WORTH_IT = "no_media", "not_worth_it"
TIME = pl.Datetime("us", "UTC")
SEEN = pl.Schema({"item": pl.Int64(), "events": pl.Int64(), "first": TIME, "last": TIME})


@dataclass(frozen=True)
class GateRule:
    """When an item passes. A condition that is None does not count; where all three are None, every item is worth it.

    The bounds in the annotations are checked in definitions.

    Attributes:
        has_media: refuse items that name no medium.
        thin_below: metadata are thin when title and description have fewer characters than this together.
        popular_from: events from which an item counts as popular, as a guess at its impressions to come.
        new_within_days: an item is new for so long after its first event, and before it.
        budget: items that may be computed in one run.
        log_share: the first share of the log that popularity and age are read from, so that events that later test a
            model decide nothing.
    """

    has_media: bool = True
    thin_below: PositiveInt | None = None
    popular_from: PositiveInt | None = None
    new_within_days: PositiveFloat | None = None
    budget: NonNegativeInt | None = None
    log_share: Annotated[float, Field(gt=0, le=1)] = 0.8


def activity(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Counts how often and for how long items have been seen.

    Give it the events that are known when the choice is made: those of a test split would leak into the choice.

    Args:
        parts: of a log, with the columns `item` (hash of the id) and `timestamp`.

    Returns:
        One row per item: `item` int64, `events` int64, `age_days` float64, from the item's first event to the log's
        last.
    """
    seen = pl.DataFrame(schema=SEEN)
    for part in parts:
        time = pl.col("timestamp")
        counted = part.group_by("item").agg(events=pl.len(), first=time.min(), last=time.max())
        seen = (
            pl.concat([seen, counted.cast(SEEN)])
            .group_by("item")
            .agg(pl.col("events").sum(), pl.col("first").min(), pl.col("last").max())
        )
    age = pl.col("last").max() - pl.col("first")
    return seen.select("item", "events", age_days=age.dt.total_microseconds() / DAY_US)


def decide(
    parts: Iterable[pa.Table], rule: GateRule, seen: pl.DataFrame | None = None, known: Collection[str] = ()
) -> pa.StringArray:
    """Decides the gate of every item, in the order of the rows; of all items it holds ids and counts.

    `OPEN` may be computed. `CACHED_ONLY` would be worth it but is over budget, and gets what the cache has for nothing.
    Anything else is the reason of a refusal: `NO_MEDIA` or `NOT_WORTH_IT`. The budget goes to the items with most
    events, among these to the newest, then by the hash of the id: the choice depends on no order of rows, so a run that
    was killed makes it again.

    Args:
        parts: of the items, with the columns `item_id` (unique), `title`, `description`, `media`.
        rule: when an item passes.
        seen: `activity` of the log; items that are not in it, or all without a log, have no events and are new.
        known: ids whose captions are there, in the cache or in the run before. They are served last, so they take
            budget from no other item.
    """
    if seen is None:
        seen = pl.DataFrame(schema={"item": pl.Int64, "events": pl.Int64, "age_days": pl.Float64})
    frame = _judged(pl.concat(_read(pl.DataFrame(items), rule) for items in parts), rule, seen)
    gates = frame["gate"] if rule.budget is None else _within_budget(frame, rule.budget, known)
    return gates.to_arrow().cast(pa.string())


def _read(frame: pl.DataFrame, rule: GateRule) -> pl.DataFrame:
    """Returns what is kept of items until all are known: item_id, item, has_media and thin."""
    characters = (pl.col(name).str.strip_chars().str.len_chars().fill_null(0) for name in ("title", "description"))
    thin = pl.sum_horizontal(*characters) < (rule.thin_below or 0)
    has_media = pl.col("media").list.len().fill_null(0) > 0
    return frame.select("item_id", item=hash_ids(frame["item_id"]), has_media=has_media, thin=thin)


def _judged(frame: pl.DataFrame, rule: GateRule, seen: pl.DataFrame) -> pl.DataFrame:
    """Returns item_id, events, age_days and gate of items, without a budget."""
    frame = frame.join(seen, on="item", how="left", maintain_order="left").with_columns(pl.col("events").fill_null(0))
    worth = [] if rule.thin_below is None else [pl.col("thin")]
    if rule.popular_from is not None:
        worth.append(pl.col("events") >= rule.popular_from)
    if rule.new_within_days is not None:
        worth.append(pl.col("age_days").is_null() | (pl.col("age_days") <= rule.new_within_days))
    refused_media = pl.lit(rule.has_media) & ~pl.col("has_media")
    worth_it = pl.any_horizontal(worth) if worth else pl.lit(True)
    gate = pl.when(refused_media).then(pl.lit(NO_MEDIA)).when(worth_it).then(pl.lit(OPEN))
    return frame.select("item_id", "events", "age_days", gate=gate.otherwise(pl.lit(NOT_WORTH_IT)))


def _within_budget(frame: pl.DataFrame, budget: int, known: Collection[str]) -> pl.Series:
    """Closes what is open beyond the first `budget` items in order of priority."""
    hashed = np.empty(frame.height, np.int64)
    hashed[hash_order(frame["item_id"])] = np.arange(frame.height)
    place = (
        frame.select("events", "age_days", "gate", known=pl.col("item_id").is_in(list(known)), hashed=pl.lit(hashed))
        .with_row_index()
        .filter(gate=OPEN)
        .sort("known", -pl.col("events"), "age_days", "hashed")["index"]
    )
    return frame["gate"].scatter(place[budget:], CACHED_ONLY)
