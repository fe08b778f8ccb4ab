"""What a user has ever liked that is near an item by its semantic ID: counts by prefix, and a second history.

Counts of a history per prefix follow the SID-Tier of GLASS, events with the item's own prefix its semantic hard search
(arXiv 2602.05663). Prefixes are the hashes of features/items.sid, so that all of it compares integers. The events of a
user with a prefix are a range of sorted ones, which bisection finds: a query costs the same after ten likes as after
ten thousand, and no history is cut short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from operators.features.tokens import NULL_ID, prefixes_of
from operators.log.events import Events, before
from storage import files
from storage.mapped import BATCH_ROWS, map_table
from storage.run import RunDir

LISTED = "long_history"  # the column of examples with the second history, and what features/spec.json calls its length
COUNTED = "sid_likes_"  # begins the names of the counts, before the number of codes that are shared
BLOCK = 1 << 14  # queries whose events are listed at once


class Shared(NamedTuple):
    """What the histories of Q queries share with their items.

    Attributes:
        counts: log(1 + number of events) that share the first code, the first two, …, float32 [Q, L].
        items: the second histories one after the other, int32; each in the order of the length of the prefix that is
            shared, then of time: the nearest, of these the latest, is the last one, as in a history.
        offsets: of them, int32 [Q+1].
    """

    counts: np.ndarray
    items: np.ndarray
    offsets: np.ndarray

    def columns(self) -> dict[str, np.ndarray | pa.ListArray]:
        """Returns the columns of examples."""
        named = zip(count_names(self.counts.shape[1]), self.counts.T, strict=True)
        return {LISTED: pa.ListArray.from_arrays(self.offsets, self.items), **dict(named)}


def count_names(levels: int) -> list[str]:
    """Returns the names of the counts, by the number of codes that are shared."""
    return [f"{COUNTED}{level + 1}" for level in range(levels)]


def described(spec: dict[str, Any], *, levels: int, length: int) -> dict[str, Any]:
    """Returns features/spec.json with second histories of this length and their counts; for 0 with neither."""
    dense = [name for name in spec["dense"] if not name.startswith(COUNTED)]
    rest = {name: value for name, value in spec.items() if name != LISTED}
    return {**rest, "dense": [*dense, *count_names(levels)], LISTED: length} if length else {**rest, "dense": dense}


def read_prefixes(run: RunDir) -> np.ndarray:
    """Returns the hashes of the prefixes of a run's items, int64 [N, L], mapped: a node's processes share one copy.

    One that training never saw is another number for each item: an item shares it with itself alone.
    """
    uri = run.uri("features", "items")
    schema = pa.schema([files.dataset(uri).schema.field("sid")])
    made = map_table(run, "prefixes", files.signature(uri), schema, lambda: _prefixes(uri, schema))
    prefixes: np.ndarray = made["sid"].chunk(0).values.to_numpy().reshape(len(made), -1)
    return prefixes


def _prefixes(uri: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in files.batches(uri, ["sid"], BATCH_ROWS):
        values = prefixes_from(batch["sid"], start)
        start += len(batch)
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        yield pa.record_batch([pa.ListArray.from_arrays(offsets, values.reshape(-1))], schema=schema)


def prefixes_from(sids: pa.Array, start: int) -> np.ndarray:
    """Returns `read_prefixes` of some items, from those of features/items.sid, whose first one has this row."""
    found = prefixes_of(sids.flatten().to_numpy().reshape(len(sids), -1))
    own = -1 - np.arange(start, start + len(sids))[:, None]
    return np.where(found == NULL_ID, own, found)


def shared_prefixes(
    log: Events, prefixes: np.ndarray, user: np.ndarray, item: np.ndarray, time: np.ndarray, *, length: int
) -> Shared:
    """Returns what the positives of each query's user, strictly before its time, share with its item.

    Of events at one time the later ones of the log count as the later ones.

    Args:
        log: the events; a stored history is one with its positions as times.
        prefixes: hashes by item and level, int64 [N, L]; see `read_prefixes`.
        user, item, time: int64 [Q], the queries.
        length: of the second histories, at most.
    """
    past = log.take(log.label > 0)
    items, code = np.unique(np.concatenate([past.item, item]), return_inverse=True)
    users = np.concatenate([past.user, user])
    ranges = []
    for column in prefixes[items].T:
        _, number = np.unique(column, return_inverse=True)
        _, entity = np.unique(users * len(items) + number[code], return_inverse=True)
        order, start, end = before(entity[: len(past)], past.time, entity[len(past) :], time)
        ranges.append((np.append(past.item[order], 0), start, end))  # the last item stands for none
    counts = np.stack([end - start for _, start, end in ranges], axis=1)
    blocks = [slice(at, at + BLOCK) for at in range(0, len(item), BLOCK)]
    lists = [_nearest(ranges, prefixes, item, block, length) for block in blocks]
    lengths = np.minimum(counts[:, 0], length)
    return Shared(
        np.log1p(counts).astype(np.float32),
        np.concatenate([np.empty(0, np.int32), *lists]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    )


def _nearest(
    ranges: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    prefixes: np.ndarray,
    item: np.ndarray,
    block: slice,
    length: int,
) -> np.ndarray:
    """Returns the second histories of a block of queries, one after the other.

    The latest `length` events of a level hold all of its own that can have a place: those that share more, too, have
    one before them.
    """
    item, found, own = item[block], [], []
    for level, (past, start, end) in enumerate(ranges):
        at = end[block, None] - np.arange(length, 0, -1)
        there = at >= start[block, None]
        found.append(past[np.where(there, at, -1)])
        if level + 1 < len(ranges):
            there &= prefixes[found[-1], level + 1] != prefixes[item, level + 1, None]
        own.append(there)
    mask = np.concatenate(own, axis=1)
    mask &= mask[:, ::-1].cumsum(axis=1)[:, ::-1] <= length
    nearest: np.ndarray = np.concatenate(found, axis=1)[mask].astype(np.int32)
    return nearest
