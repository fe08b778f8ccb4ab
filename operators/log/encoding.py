"""A log that is at hand whole, in numbers: samples of a log, and what tests compare partitions with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from operators.log.events import Events
from operators.log.partitions import CONTEXT, LIKED, check_liked, rows_among
from operators.log.writing import hashed
from storage.errors import UserError
from storage.hashing import hash_ids


class Log(NamedTuple):
    """A log in numbers, ordered by time, then user, then item."""

    events: Events
    users: pa.Array  # user_id of every user code, in hash order
    context: pa.Table  # the remaining numeric columns, float32, one row per event
    labelled: bool
    items: pa.ChunkedArray  # item_id of every item code, in hash order; also of items without an event


def encode(interactions: pa.Table, ids: pa.ChunkedArray) -> Log:
    """Returns a log that is at hand whole in numbers, without the events of other items.

    Args:
        interactions: see `operators.log.partitions.hashed`.
        ids: of the items, in the order of their hashes.

    Raises:
        UserError: all labels are 0, or no event is left.
    """
    events, users = hashed(interactions)
    at, known = rows_among(hash_ids(ids.to_pylist()), events["item"].to_numpy())
    events = events.filter(pa.array(known))
    label, labels = np.ones(events.num_rows, np.float32), "label" in events.column_names
    if labels:
        label = (events["label"].to_numpy() >= LIKED).astype(np.float32)
        check_liked(int(label.sum()) if len(label) else 1)
    time = events["timestamp"].cast(pa.int64()).to_numpy()
    context = events.select([name for name in events.column_names if name.startswith(CONTEXT)])
    if not events.num_rows:
        raise UserError("No interaction names an item of the catalogue: check that both use the same item_id.")
    hashes, user = np.unique(events["user"].to_numpy(), return_inverse=True)
    found = Events(user, at[known], time, label)
    order = np.lexsort((found.label, found.item, found.user, found.time))
    users = users.sort_by("user")
    at, _ = rows_among(users["user"].to_numpy(), hashes)
    names = users["user_id"].combine_chunks().take(pa.array(at))
    return Log(found.take(order), names, context.take(pa.array(order)), labels and not label.all(), ids)
