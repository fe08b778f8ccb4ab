"""A user as bytes, the same in every store: pairs of int64, little endian, so that an event more is 16 bytes more.

The first pair is the number of events and whether the user's id is trained; then item and time of each liked event.
"""

from __future__ import annotations

import numpy as np

from serving.stores.base import User

FORMAT = 1  # of the records; raised when they change


def pack(user: User) -> bytes:
    """Returns the record of a user."""
    pairs = np.empty((len(user.items) + 1, 2), "<i8")
    pairs[0] = user.events, user.trained
    pairs[1:, 0], pairs[1:, 1] = user.items, user.times
    return pairs.tobytes()


def unpack(record: bytes) -> User:
    """Returns the user of a record."""
    pairs = np.frombuffer(record, "<i8").reshape(-1, 2)
    (events, trained), rest = pairs[0].tolist(), pairs[1:]
    return User(rest[:, 0].astype(np.int64), rest[:, 1].astype(np.int64), events, bool(trained))


def key(user_id: str) -> bytes:
    """Returns an id as bytes; half a surrogate pair, which no text encoding takes, is an id like any other."""
    return user_id.encode("utf-8", "surrogatepass")
