"""How a definition splits the log: one way for everyone who learns from it or is scored on it."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from models.common.settings import Settings
from operators.log.events import Events, split_by_time, split_leave_last


class SplitTime(Settings):
    """Global time: the last shares of the events are validation and test."""

    kind: Literal["time"] = "time"
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    def numbers(self, events: Events) -> np.ndarray:
        """See `operators.log.events.split_by_time`."""
        return split_by_time(events.time, valid=self.valid, test=self.test)

    @model_validator(mode="after")
    def _room_for_training(self) -> SplitTime:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must stay below 1, so that events are left to train on")
        return self


class SplitLeaveLast(Settings):
    """Each user's last event is test, the one before validation."""

    kind: Literal["leave_last"]

    def numbers(self, events: Events) -> np.ndarray:
        """See `operators.log.events.split_leave_last`."""
        return split_leave_last(events.user, events.time)


Split = Annotated[SplitTime | SplitLeaveLast, Field(discriminator="kind")]
