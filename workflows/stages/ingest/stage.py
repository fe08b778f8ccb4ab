"""Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from operators.base import REJECTED, rejects_table
from operators.log.encoding import LIKED, liked
from operators.log.events import Events
from storage import files, tables
from storage.errors import UserError
from workflows.catalogs.survey import Survey, sample, says
from workflows.engine.stage import Context, Result, Stage, StageConfig
from workflows.stages.ingest import events, items
from workflows.stages.ingest.texts import ids


class Config(StageConfig):
    """Settings of ingest.

    Attributes:
        media: where the one medium of an item lies by its id, such as `pictures/{item_id}.jpg`; for an items table
            without a column `media`, or with an empty one.
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

    def with_media(self, table: pl.DataFrame) -> pl.DataFrame:
        """Adds the column `media` to items as they were read, where the definition says where media lie."""
        if self.media is None or ("media" in table.columns and table.select(says("media", table.schema).any()).item()):
            return table
        before, _, after = self.media.partition("{item_id}")
        return table.with_columns(media=pl.format("{}{}{}", pl.lit(before), ids(table["item_id"]), pl.lit(after)))

    def with_labels(self, log: pl.DataFrame) -> pl.DataFrame:
        """Makes the column `label` of a log as it was read, where the definition says how."""
        if self.label != "label":
            log = log.drop("label", strict=False).rename({self.label: "label"})
        if self.positive_from is None or "label" not in log.columns:
            return log
        return log.with_columns((events.number(log["label"]) >= self.positive_from).cast(pl.Float32))


class IngestStage(Stage[Config]):
    """Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

    config_type = Config
    version = 5
    seeded = False

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds ids that are none, and labels and timestamps that are none.

        Raises:
            UserError: too many items have no id of their own, labels lie outside 0 … 1, their column is not there, or
                no timestamp or no label of a sample can be read.
        """
        if catalog.unnamed > config.max_reject_share * catalog.items:
            raise UserError(
                f"{catalog.unnamed:,} of {catalog.items:,} items have no item_id, or that of another item: give each "
                "its own, or raise stages.ingest.max_reject_share."
            )
        if catalog.events is not None and config.label != "label" and config.label not in catalog.columns:
            raise UserError(f"stages.ingest.label is {config.label!r}: the log has {', '.join(catalog.columns)}.")
        low, high = catalog.labels or (0.0, 1.0)
        if config.positive_from is None and not 0 <= low <= high <= 1:
            raise UserError(
                f"The labels of the log go from {low:g} to {high:g}: write stages.ingest.positive_from, the least one "
                "that counts as liked, or labels of 1 and 0."
            )
        if (log_uri := tables.find(catalog.uri, "interactions")) is not None:
            rows = config.with_labels(sample(log_uri))
            rows = rows.drop_nulls([name for name in ("timestamp", "label") if name in rows.columns])
            events.canonical_events(rows, log_uri, order=tables.timestamps(catalog.uri) == "order")
        return []

    def run(self, config: Config, context: Context) -> Result:
        """Writes `catalog/items`, `catalog/interactions` (where the catalogue has them) and `rejects/ingest`.

        Raises:
            UserError: a table has nothing that can be used, the log loses more events than allowed, or later stages
                cannot learn from it.
        """
        uri = tables.find(context.catalog, "items")
        assert uri is not None  # noqa: S101 - preflight has seen it
        scanned = tables.scan(uri)
        usable, issues = items.split_items(items.canonical_items(config.with_media(scanned.rows), uri), scanned.bad)
        rejected = issues.filter(severity=REJECTED).height
        if usable.is_empty():
            raise items.no_usable(uri, issues)
        metrics: dict[str, object] = {}
        notes = scanned.notes
        order = tables.timestamps(context.catalog)
        if order is not None:
            metrics["timestamps"] = order
        log_uri = tables.find(context.catalog, "interactions")
        if log_uri is not None:
            log = tables.scan(log_uri)
            rows = config.with_labels(log.rows)
            canonical = events.canonical_events(rows, log_uri, order=order == "order")
            kept, dropped = events.clean_events(canonical, usable["item_id"], rows, log.bad)
            events.check_dropped(log_uri, kept.height, dropped, config.max_dropped_share, usable["item_id"])
            notes = [*notes, *log.notes, *check_learnable(kept, context, order == "order")]
            if lost := events.told(dropped):
                notes.append(f"dropped of {context.catalog}'s interactions {lost}")
            context.run.write_table(events.to_arrow(kept), "catalog", "interactions")
            counts = {reason: loss.events for reason, loss in dropped.items()}
            metrics["interactions"] = {
                "rows_in": kept.height + sum(counts.values()),
                "rows_out": kept.height,
                "dropped": counts,
                "first": kept["timestamp"][0].isoformat(),  # in UTC; where timestamps only order, so do these
                "last": kept["timestamp"][-1].isoformat(),
            }
        else:
            files.remove(context.run.uri("catalog", "interactions"))  # of an earlier state of the catalogue
        for note in notes:
            context.log(f"ingest: {note}")
        context.run.write_table(items.to_arrow(usable), "catalog", "items")
        context.run.write_table(rejects_table(issues, stage="ingest"), "rejects", "ingest")
        return Result(
            rows_in=usable.height + rejected,
            rows_out=usable.height,
            rejected=rejected,
            degraded=issues.height - rejected,
            metrics=metrics,
        )


def check_learnable(log: pl.DataFrame, context: Context, order: bool) -> list[str]:
    """Checks that later stages can learn from a log, before captions and embeddings are paid for.

    Returns:
        What there is to say of it: its time, or that its labels say nothing.

    Raises:
        UserError: a later stage splits the log, and all labels are 0, or a part of the split would be empty.
    """
    first, last = (f"{log['timestamp'][row]:%Y-%m-%d %H:%M:%S}" for row in (0, -1))
    notes = [f"{log.height} events of {log['user_id'].n_unique()} users from {first} to {last} UTC"]
    if order:
        notes = ["the timestamps tell the order of a user's events, not the time: they do not compare users"]
    if "label" in log.columns and (log["label"] >= LIKED).all():
        notes.append("every label is 1, which says nothing: the log is read as positives alone")
    if context.splits:
        if "label" in log.columns:
            liked(log["label"].to_numpy())
        user = log["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
        time, ones = log["timestamp"].dt.epoch("us").to_numpy(), np.ones(log.height, np.float32)
        context.split.numbers(Events(user, np.zeros_like(user), time, ones))
    return notes
