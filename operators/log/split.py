"""How a definition splits the log: one way for everyone who learns from it or is scored on it.

A split is a pure function of a user's events and of the times at which it cuts the whole log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from models.common.settings import Settings
from operators.log.events import HELD_BACK, Events
from storage.errors import UserError

HELD = 1 << 20  # times that are sorted at once
BINS = 4096

# The log in parts, each with all events of its users; read repeatedly.
Parts: TypeAlias = Callable[[], Iterable[Events]]


class SplitTime(Settings):
    """Global time: the last shares of the events are validation and test."""

    kind: Literal["time"] = "time"
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    def cuts(self, parts: Parts, events: int) -> tuple[int, ...]:
        """Returns the times of the first event of validation and of the first one of test, microseconds.

        Args:
            parts: the log.
            events: their number.

        Raises:
            UserError: a split would be empty.
        """
        valid, test = (quantile(parts, events, share) for share in (1 - self.valid - self.test, 1 - self.test))
        if not (valid < test and any((part.time < valid).any() for part in parts())):
            raise UserError(
                "The log has too few distinct timestamps for a split by time: write split: {kind: leave_last} at the "
                "top of the definition, or add events."
            )
        return valid, test

    def numbers(self, events: Events, cuts: tuple[int, ...]) -> np.ndarray:
        """Returns the split (0, 1, 2 as in SPLITS) of every event, int8 [E]; all events of one moment share a split."""
        return np.searchsorted(np.array(cuts, np.int64), events.time, side="right").astype(np.int8)

    @model_validator(mode="after")
    def _room_for_training(self) -> SplitTime:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must stay below 1, so that events are left to train on")
        return self


class SplitLeaveLast(Settings):
    """Each user's last event is test, the one before validation.

    A model has learned the event before the one that validation asks for, and not the event before the one that test
    asks for. Validation therefore flatters what remembers training: too little regularisation, and too long a fit.

    Attributes:
        held_back: 2 keeps the event before validation's from training, too, as validation's is for test, so that both
            are asked alike: for choosing settings. The event stands in histories, and is neither learned nor asked for.
    """

    kind: Literal["leave_last"]
    held_back: Literal[1, 2] = 1

    def cuts(self, parts: Parts, events: int) -> tuple[int, ...]:
        """Checks that the log can be split so; there is nothing to cut.

        Raises:
            UserError: no user has three events.
        """
        if not any((np.bincount(part.user) >= 3).any() for part in parts()):
            raise UserError("No user has three events: choose split.kind time or add events.")
        return ()

    def numbers(self, events: Events, cuts: tuple[int, ...]) -> np.ndarray:
        """Returns the split of every event: each user's last one is test, the one before valid; int8 [E].

        The one before that is `HELD_BACK` where two are held back. Users with fewer than three events train only. Among
        events of one moment the later row is the last.
        """
        order = np.lexsort((events.time, events.user))
        counts = np.bincount(events.user)
        ends = np.cumsum(counts)[counts >= 3]
        number = np.zeros(len(events), dtype=np.int8)
        number[order[ends - 1]] = 2
        number[order[ends - 2]] = 1
        if self.held_back == 2:
            number[order[ends - 3]] = HELD_BACK
        return number


Split = Annotated[SplitTime | SplitLeaveLast, Field(discriminator="kind")]


def split_numbers(split: Split, events: Events) -> np.ndarray:
    """Returns the split of every event of a whole log, int8 [E].

    Raises:
        UserError: the log cannot be split so.
    """
    return split.numbers(events, split.cuts(lambda: [events], len(events)))


def quantile(parts: Parts, events: int, share: float) -> int:
    """Returns the time that a share of the events come before or with, exactly: NumPy's quantile `nearest`.

    Counts the times in bins, and those of the bin that holds it in finer ones, until few are left to sort.
    """
    rank = int(np.rint((events - 1) * share))
    ends = [(int(part.time.min()), int(part.time.max())) for part in parts() if len(part)]
    low, high = min(first for first, _ in ends), max(last for _, last in ends)  # of the range that holds it
    left = events
    while left > HELD and low < high:
        width = -(-(high - low + 1) // BINS)
        counts = np.zeros(BINS, np.int64)
        for part in parts():
            inside = part.time[(part.time >= low) & (part.time <= high)]
            counts += np.bincount((inside - low) // width, minlength=BINS)
        at = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank, left = rank - int(counts[:at].sum()), int(counts[at])
        low, high = low + at * width, min(high, low + (at + 1) * width - 1)
    if low == high:
        return low
    times = np.concatenate([part.time[(part.time >= low) & (part.time <= high)] for part in parts()])
    return int(np.partition(times, rank)[rank])


def ranges(parts: Parts, first: int, last: int, number: int) -> np.ndarray:
    """Returns times that cut a log into so many ranges of about equally many events, int64 [number - 1], ascending.

    The events of one moment are in one range, and ranges may be empty. A range holds its cut and ends before the next.
    """
    if number == 1:
        return np.empty(0, np.int64)
    bins = BINS * number
    width = -(-(last - first + 1) // bins)
    counts = np.zeros(bins, np.int64)
    for part in parts():
        counts += np.bincount((part.time - first) // width, minlength=bins)
    wanted = np.arange(1, number) * counts.sum() / number
    return first + width * (np.searchsorted(np.cumsum(counts), wanted) + 1)
