"""The interaction log in numbers, and how a definition splits it: one way for all who learn from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.features.tokens import token_hashes
from operators.log.events import Events
from storage.errors import UserError
from storage.hashing import hash_order


class Log(NamedTuple):
    """A log in numbers, ordered by time, then user, then item."""

    events: Events
    users: pa.Array  # user_id of every user code, in hash order
    context: pa.Table  # the remaining numeric columns, float32, one row per event
    labelled: bool

    def user_ids(self) -> np.ndarray:
        """Hash of the id of every user code, int64."""
        return token_hashes(self.users.to_pylist())


def encode(interactions: pa.Table, item_ids: pa.ChunkedArray) -> Log:
    """Give users and items integer codes; drop events whose item has no features (its interpretation failed).

    A log whose labels are all 1 says as little as one without labels, and counts as such.

    Raises:
        UserError: some rows have a label and others none, all are 0, or no event is left.
    """
    labelled = "label" in interactions.column_names and interactions["label"].null_count < interactions.num_rows
    if labelled and interactions["label"].null_count:
        raise UserError("Some rows of the log have no label: fill them with 0 or 1, or leave the column out.")
    interactions = interactions.filter(pc.is_in(interactions["item_id"], item_ids))
    if not interactions.num_rows:
        raise UserError("No interaction names an item of the catalogue: check that both use the same item_id.")
    users = pc.unique(interactions["user_id"])
    users = users.take(pa.array(hash_order(users.to_pylist())))
    user = pc.index_in(interactions["user_id"], users).to_numpy().astype(np.int64)
    item = pc.index_in(interactions["item_id"], item_ids).to_numpy().astype(np.int64)
    time = interactions["timestamp"].cast(pa.int64()).to_numpy()
    label = np.ones(len(user), np.float32)
    if labelled:
        label = (interactions["label"].to_numpy() >= 0.5).astype(np.float32)
        if not label.any():
            raise UserError("Every label of the log is 0: label the clicks or likes 1, or leave the column out.")
        labelled = not label.all()
    order = np.lexsort((label, item, user, time))
    columns = [name for name in interactions.column_names if name not in ("user_id", "item_id", "timestamp", "label")]
    dense = pa.table({name: interactions[name].cast(pa.float32()).take(pa.array(order)) for name in columns})
    return Log(Events(user, item, time, label).take(order), users, dense, labelled)
