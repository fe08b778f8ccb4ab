"""Writing the partitions of a log, from the events of a catalogue or on top of those of an earlier run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.log.partitions import CONTEXT, KEYS, TIMESTAMP, counts, part_uri
from storage import files
from storage.errors import UserError
from storage.hashing import hash_ids, hash_strings
from storage.run import RunDir

CHECK = 1  # seed of the second hash, which tells ids apart that share the first


def hashed(interactions: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Returns events with hashes in place of ids, and the ids of the users.

    Args:
        interactions: user_id, item_id, timestamp, label if there are any, numeric context columns.

    Returns:
        The events with the columns of a partition and `user_check`, a second hash of the user; and user, user_check,
        user_id of each user.
    """
    ids = {name: interactions[name].combine_chunks().dictionary_encode() for name in ("user_id", "item_id")}
    names = {name: column.dictionary.to_pylist() for name, column in ids.items()}
    codes = {name: column.indices.to_numpy() for name, column in ids.items()}
    users = {"user": hash_ids(names["user_id"]), "user_check": second_hash(names["user_id"])}
    keys = {name: values[codes["user_id"]] for name, values in users.items()}
    keys["item"] = hash_ids(names["item_id"])[codes["item_id"]]
    events = {**keys, "timestamp": interactions["timestamp"].cast(TIMESTAMP)}
    for name in interactions.column_names:
        if name not in ("user_id", "item_id", "timestamp"):
            events[name if name == "label" else f"{CONTEXT}{name}"] = interactions[name].cast(pa.float32())
    return pa.table(events), pa.table({**users, "user_id": pa.array(names["user_id"], pa.string())})


def second_hash(ids: list[str]) -> np.ndarray:
    """Returns another hash of ids, int64 [N], which tells those apart that share the first."""
    return hash_strings(ids, seed=CHECK).view(np.int64)


def write_part(run: RunDir, number: int, partitions: int, events: pa.Table, users: pa.Table) -> dict[str, int]:
    """Writes a partition: its events without duplicates and in order, and its users.

    Args:
        run: where `log/` is written.
        number: of the partition, below `partitions`.
        events, users: of `hashed`, in any order.

    Returns:
        Counts of this partition: those of `About`, and `duplicates`.

    Raises:
        UserError: two users share a hash.
        RuntimeError: an event belongs to another partition.
    """
    if (events["user"].to_numpy() % partitions != number).any():
        raise RuntimeError(f"events of another partition came to partition {number} of the log")
    ordered = _ordered(events.drop_columns("user_check"))
    _write(run, number, ordered, _distinct_users(users))
    return {**counts(ordered), "duplicates": events.num_rows - ordered.num_rows}


def extend_part(
    run: RunDir,
    number: int,
    partitions: int,
    before: pa.Table,
    users_before: pa.Table,
    events: pa.Table | None,
    users: pa.Table | None,
) -> dict[str, int]:
    """Writes a partition that goes on from that of an earlier run; events that come behind it are not sorted with it.

    Args:
        run, number, partitions: see `write_part`.
        before, users_before: the earlier partition, as it is on disk.
        events, users: those that have come since, of `hashed`, in any order; None for none.

    Returns:
        See `write_part`; `before` counts the earlier events.

    Raises:
        UserError: two users share a hash.
        RuntimeError: an event belongs to another partition.
    """
    if events is None or users is None or not events.num_rows:
        _write(run, number, before, users_before)
        return {**counts(before), "duplicates": 0, "before": before.num_rows}
    if (events["user"].to_numpy() % partitions != number).any():
        raise RuntimeError(f"events of another partition came to partition {number} of the log")
    new = _ordered(events.drop_columns("user_check").select(before.column_names))
    both, old_user = pa.concat_tables([before, new]), before["user"].to_numpy()
    at = np.searchsorted(old_user, new["user"].to_numpy(), side="right")
    last = np.maximum(at - 1, 0)
    if len(before):
        own = (at > 0) & (old_user[last] == new["user"].to_numpy())
        earlier = before["timestamp"].cast(pa.int64()).to_numpy()[last] < new["timestamp"].cast(pa.int64()).to_numpy()
        behind = bool((earlier | ~own).all())
    else:
        behind = True
    order = np.insert(np.arange(len(before)), at, len(before) + np.arange(len(new)))
    merged = both.take(pa.array(order)) if behind else _ordered(both)
    names = users_before["user_id"]
    checked = users_before.append_column("user_check", pa.array(second_hash(names.to_pylist())))
    _write(run, number, merged, _distinct_users(pa.concat_tables([checked.select(users.column_names), users])))
    given = events.num_rows + before.num_rows
    return {**counts(merged), "duplicates": given - merged.num_rows, "before": before.num_rows}


def _ordered(events: pa.Table) -> pa.Table:
    """Returns distinct events in the order of a partition."""
    rest = [name for name in events.column_names if name not in KEYS]
    names = [name for name in KEYS if name in events.column_names] + rest
    events = events.select(names).group_by(names, use_threads=False).aggregate([])
    return events.sort_by([(name, "ascending") for name in names])


def _distinct_users(users: pa.Table) -> pa.Table:
    """Returns user and user_id of distinct users, in the order of user.

    Raises:
        UserError: two users share a hash.
    """
    users = users.group_by(["user", "user_check"]).aggregate([("user_id", "min")]).sort_by("user")
    ids = users.rename_columns({"user_id_min": "user_id"})
    hashes = ids["user"].to_numpy()
    if (same := np.flatnonzero(hashes[1:] == hashes[:-1])).size:
        both = ids["user_id"].take(pa.array([same[0], same[0] + 1])).to_pylist()
        raise UserError(f"The users {both[0]!r} and {both[1]!r} have the same hash: rename one of them.")
    return ids.select(["user", "user_id"])


def _write(run: RunDir, number: int, events: pa.Table, users: pa.Table) -> None:
    """Writes a partition, with those of the users that have an event in it."""
    there = pc.is_in(users["user"], events["user"].combine_chunks())
    files.write_part(part_uri(run, "users", number), users.filter(there))
    files.write_part(part_uri(run, "events", number), events)
