"""Settings of ingest, and what they make of rows as they were read."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
from pydantic import Field

from storage import tables
from workflows.catalogs.survey import says
from workflows.engine.stage import ContinuingConfig
from workflows.stages.ingest.events import number
from workflows.stages.ingest.texts import ids


class Config(ContinuingConfig):
    """Settings of ingest.

    Attributes:
        media: where the one medium of an item lies by its id, such as `pictures/{item_id}.jpg`; for an items table
            without a column `media`, or with an empty one.
        log: whether to read the log; false where no stage learns from it.
        label: column of the log that labels stand in.
        positive_from: the least label that counts as 1, for ratings; all below count as 0.
        partition_events: events of a partition of the log, about: what one process holds of it. The same events come
            out, but later fits read them in another order, so it counts as a setting that changes results.
        max_reject_share: share of rejected items past which the run fails.
        max_dropped_share: share of dropped events, duplicates included, past which the run fails.
    """

    media: str | None = Field(None, pattern=r"\{item_id\}")
    log: bool = True
    label: str = "label"
    positive_from: float | None = None
    partition_events: int = Field(1_000_000, ge=1)
    max_reject_share: float = Field(0.1, ge=0, le=1)
    max_dropped_share: float = Field(0.5, ge=0, le=1)

    resources: ClassVar[frozenset[str]] = frozenset({"max_reject_share", "max_dropped_share"})

    def names_media(self, table: pl.DataFrame) -> bool:
        """Returns whether the definition says where media lie and the items, as they were read, do not."""
        return self.media is not None and not table.select(says("media", table.schema).any()).item()

    def with_media(self, table: pl.DataFrame, whole: bool | None = None) -> pl.DataFrame:
        """Adds media named by ids to items, as they were read, that have none; for `whole` see `texts.ids`."""
        if self.media is None or not self.names_media(table):
            return table
        before, _, after = self.media.partition("{item_id}")
        named = pl.format("{}{}{}", pl.lit(before), ids(table["item_id"], whole=whole), pl.lit(after))
        return table.with_columns(media=named)

    def reading(self, catalog: str) -> Config:
        """Returns the settings that a catalogue is read by: an export has labels of 0 and 1, whatever its run had."""
        return self.model_copy(update={"label": "label", "positive_from": None}) if tables.exported(catalog) else self

    def with_labels(self, log: pl.DataFrame) -> pl.DataFrame:
        """Makes the column `label` of a log as it was read, where the definition says how."""
        if self.label != "label":
            log = log.drop("label", strict=False).rename({self.label: "label"}, strict=False)
        if self.positive_from is None or "label" not in log.columns:
            return log
        return log.with_columns((number(log["label"]) >= self.positive_from).cast(pl.Float32))
