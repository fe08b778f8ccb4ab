"""Which items are new, and a controller that holds the share of places that they have."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from operators.log.events import DAY_US, SECOND_US
from operators.log.partitions import open_log
from storage import files
from storage.mapped import map_table
from storage.run import RunDir

PROPORTIONAL, INTEGRAL = 1.0, 0.2  # of an error of 1, in standard deviations of candidates' scores
MEMORY = 50  # answers over which the error is averaged for the proportional part
BOUND = 10.0  # of what is added to a score


class Controller:
    """A PI controller: adds to the scores of new items what brings their share of places to a target.

    The error of an answer is the target less the share of its places that new items have. The integral part stops at a
    bound (anti-windup), so that it can turn soon where no candidate was new for long. State is of one process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = self._mean = 0.0

    def bonus(self) -> float:
        """Returns what new items' standardised scores get added; below 0 where they would have too many places."""
        with self._lock:
            return min(max(self._sum + PROPORTIONAL * self._mean, -BOUND), BOUND)

    def note(self, is_new: np.ndarray, target: float) -> None:
        """Learns which items of an answer were new, bool [k]."""
        if not len(is_new):
            return
        error = target - float(is_new.mean())
        with self._lock:
            self._sum = min(max(self._sum + INTEGRAL * error, -BOUND), BOUND)
            self._mean += (error - self._mean) / MEMORY


def first_seen(run: RunDir) -> np.ndarray:
    """Returns when each item was first seen, int64 [N], microseconds: its first event, else the end of the log."""
    log, schema = open_log(run), pa.schema([("seen", pa.int64())])

    def find() -> Iterator[pa.RecordBatch]:
        seen = np.full(len(log.items), log.about.last, np.int64)
        for number in range(log.about.partitions):
            events = log.part(number).events
            np.minimum.at(seen, events.item, events.time)
        yield pa.record_batch([pa.array(seen)], schema=schema)

    about = [log.folder, *files.signature(run.uri("embeddings"))]
    seen: np.ndarray = map_table(run, "first_seen", about, schema, find)["seen"].to_numpy()
    return seen


def seen_within(seen: np.ndarray, days: float) -> np.ndarray:
    """Returns which items were first seen less than so many days ago, bool [n]."""
    return seen > time.time() * SECOND_US - days * DAY_US
