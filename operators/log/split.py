"""How a definition splits the log: one way for everyone who learns from it or is scored on it."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from models.common.settings import Settings
from operators.log.events import SPLITS, Events
from storage.errors import UserError


class SplitTime(Settings):
    """Global time: the last shares of the events are validation and test."""

    kind: Literal["time"] = "time"
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    def numbers(self, events: Events) -> np.ndarray:
        """Returns the split (0, 1, 2 as in SPLITS) of every event, int8 [E]; all events of one moment share a split.

        Raises:
            UserError: a split would be empty.
        """
        cuts = np.quantile(events.time, [1 - self.valid - self.test, 1 - self.test], method="nearest")
        number = np.searchsorted(cuts, events.time, side="right").astype(np.int8)
        if len(np.unique(number)) < len(SPLITS):
            raise UserError(
                f"The log has too few distinct timestamps ({len(np.unique(events.time))}) for a split by time: write "
                "split: {kind: leave_last} at the top of the definition, or add events."
            )
        return number

    @model_validator(mode="after")
    def _room_for_training(self) -> SplitTime:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must stay below 1, so that events are left to train on")
        return self


class SplitLeaveLast(Settings):
    """Each user's last event is test, the one before validation."""

    kind: Literal["leave_last"]

    def numbers(self, events: Events) -> np.ndarray:
        """Returns the split of every event: each user's last one is test, the one before valid; int8 [E].

        Users with fewer than three events train only. Among events of one moment the later row is the last.

        Raises:
            UserError: no user has three events.
        """
        order = np.lexsort((events.time, events.user))
        counts = np.bincount(events.user)
        ends = np.cumsum(counts)[counts >= 3]
        if not len(ends):
            raise UserError("No user has three events: choose split.kind time or add events.")
        number = np.zeros(len(events), dtype=np.int8)
        number[order[ends - 1]] = 2
        number[order[ends - 2]] = 1
        return number


Split = Annotated[SplitTime | SplitLeaveLast, Field(discriminator="kind")]
