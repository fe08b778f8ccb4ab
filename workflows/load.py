"""A store filled with the users of a run, partition by partition; in this process, without Ray.

The store remembers which partitions are in it whole, so that a call that was killed goes on at the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from operators.features.tokens import NULL_ID
from operators.log.partitions import item_hashes, open_log
from serving.ranking import trained_by
from serving.stores.base import User
from serving.stores.opening import open_store
from storage import files
from storage.errors import ArtifactError
from storage.manifest import require_finished, require_manifest
from storage.run import RunDir

NEWEST = "log"  # note of a store: the end of the newest log of which it has users, microseconds
COLUMNS = ["user_id", "user", "seen", "seen_time", "events"]


class Loaded(NamedTuple):
    """What a call has put into a store.

    Attributes:
        users: written by this call.
        seconds: that it took.
        skipped, parts: partitions that were there already, and all.
    """

    users: int
    seconds: float
    skipped: int
    parts: int

    def lines(self) -> list[str]:
        """Returns the lines that say so."""
        skipped = f"load: {self.skipped} of {self.parts} partitions are in the store already, and are skipped"
        speed = f"{self.users / self.seconds:,.0f} rows/s" if self.users else "nothing to do"
        return [skipped] * bool(self.skipped) + [f"load: {self.users} users in {self.seconds:.1f} s, {speed}"]


def load_users(root: str, store_uri: str, batch: int, progress: Callable[[int, int], None]) -> Loaded:
    """Writes the users of a run into a store; those that it has are replaced, but for events after the run's log.

    Where the store has users of a log that ends later, these stay as they are.

    Args:
        root: URI of the run directory.
        store_uri: see `serving.stores.opening.open_store`.
        batch: users that are written at once.
        progress: called with the number of users done and their total.

    Raises:
        UserError: the run has no finished stage `features`, or the store cannot be used.
    """
    started, run = time.monotonic(), RunDir(files.absolute(root))
    require_finished(run.root, ["features"], "cannot be loaded")
    source, folder = require_manifest(run.root).stages["features"].fingerprint, run.uri("features", "users")
    table, parts = files.dataset(folder), files.parts(folder)
    if missing := set(COLUMNS) - set(table.schema.names):
        raise ArtifactError(f"{folder} has no column {min(missing)!r}, of an earlier version of tesserec", folder)
    items, until = item_hashes(run), open_log(run).about.last
    store = open_store(store_uri, create=True)
    try:
        total, done, written = table.count_rows(), 0, 0
        newest = int(note.text) if (note := store.notes(NEWEST).get(NEWEST)) else until
        store.keep_note(NEWEST, str(max(newest, until)))
        there = store.begin_load(source)
        for number, part in enumerate(parts):
            if number in there:
                done += files.dataset(part).count_rows()
                continue
            for ids, users in _batches(part, items, batch, trained_by(run)):
                store.write(ids, users, until=until, replace=until >= newest)
                done, written = done + len(ids), written + len(ids)
                progress(done, total)
            store.finish_part(source, number)
    finally:
        store.close()
    return Loaded(written, time.monotonic() - started, len(there), len(parts))


def _batches(part: str, items: np.ndarray, rows: int, by: int) -> Iterator[tuple[list[str], list[User]]]:
    """Yields the users of a partition and their ids.

    Args:
        part: URI of the partition.
        items: hash of each item of the run, int64 [N].
        rows: of a batch.
        by: number of the run.
    """
    for batch in files.batches(part, COLUMNS, rows):
        offsets = batch["seen"].offsets.to_numpy()
        ends = (offsets - offsets[0]).tolist()
        hashes, times = items[batch["seen"].flatten().to_numpy()], batch["seen_time"].flatten().to_numpy()
        trained = (batch["user"].to_numpy() != NULL_ID).tolist()
        nothing = np.empty(0, np.int64)
        users = [
            User(hashes[start:end], times[start:end], events, (by,) * is_trained, nothing)
            for start, end, events, is_trained in zip(
                ends[:-1], ends[1:], batch["events"].to_pylist(), trained, strict=True
            )
        ]
        yield batch["user_id"].to_pylist(), users
