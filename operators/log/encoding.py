"""The interaction log of a run in numbers: `read_log` is the one way to it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.columns import positions
from operators.features.tokens import token_hashes
from operators.log.events import Events
from storage import files
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir

LIKED = 0.5  # the least label that counts as 1


class Log(NamedTuple):
    """A log in numbers, ordered by time, then user, then item."""

    events: Events
    users: pa.Array  # user_id of every user code, in hash order
    context: pa.Table  # the remaining numeric columns, float32, one row per event
    labelled: bool
    items: pa.ChunkedArray  # item_id of every item code, in hash order; also of items without an event

    def user_ids(self) -> np.ndarray:
        """Hashes of the id of every user code, int64."""
        return token_hashes(self.users.to_pylist())


def read_log(run: RunDir) -> Log:
    """Returns the log of a run in numbers; its items are those that have an embedding.

    The process remembers the last one: most stages read the same log.

    Raises:
        UserError: there is none, or as of `encode`.
    """
    if not files.exists(run.uri("catalog", "interactions")):
        raise UserError("The catalogue has no interactions: leave out the stages that read them, from features on.")
    tables = (run.uri("catalog", "interactions"), run.uri("embeddings"))
    return _read(*tables, *map(files.signature, tables))


@functools.lru_cache(maxsize=1)
def _read(interactions: str, embeddings: str, *_signatures: tuple[str, ...]) -> Log:
    ids = files.read_table(embeddings, ["item_id"])["item_id"]
    return encode(files.read_table(interactions), ids.take(hash_order(ids.to_pylist())))


def encode(interactions: pa.Table, item_ids: pa.ChunkedArray) -> Log:
    """Numbers users and items, and drops events whose item has no features (its interpretation failed).

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
    user, item = positions(interactions["user_id"], users), positions(interactions["item_id"], item_ids)
    time = interactions["timestamp"].cast(pa.int64()).to_numpy()
    label = np.ones(len(user), np.float32)
    if labelled:
        label = liked(interactions["label"].to_numpy()).astype(np.float32)
        labelled = not label.all()
    order = np.lexsort((label, item, user, time))
    columns = [name for name in interactions.column_names if name not in ("user_id", "item_id", "timestamp", "label")]
    dense = pa.table({name: interactions[name].cast(pa.float32()).take(pa.array(order)) for name in columns})
    return Log(Events(user, item, time, label).take(order), users, dense, labelled, item_ids)


def liked(labels: np.ndarray) -> np.ndarray:
    """Returns which labels of a log say that an item was liked, bool.

    Raises:
        UserError: none does.
    """
    found = labels >= LIKED
    if not found.any():
        raise UserError("Every label of the log is 0: label the clicks or likes 1, or leave the column out.")
    return found
