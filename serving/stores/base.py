"""What a store of users has to do; each implementation passes the same tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class User(NamedTuple):
    """What is kept of a user.

    Attributes:
        items: hashes of the ids of the items that they liked, int64 [n], oldest first; see `storage.hashing.hash_ids`.
        times: of these events, int64 [n], microseconds.
        events: number of all their events, those that are no like included.
        trained: whether the ranker has learned this user's id.
    """

    items: np.ndarray
    times: np.ndarray
    events: int
    trained: bool


class UserStore(Protocol):
    """Users by id. Several processes may read one store at once."""

    def read(self, user_ids: Sequence[str]) -> list[User | None]:
        """Returns the users of these ids; None for one that it does not have."""
        ...

    def write(self, user_ids: Sequence[str], users: Sequence[User]) -> None:
        """Adds users, or replaces those that it has; all of them or none."""
        ...

    def count(self) -> int:
        """Returns the number of users."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


class LoadableStore(UserStore, Protocol):
    """A store that is filled from a source of numbered parts, and remembers how far that has come."""

    def begin_load(self, source: str) -> set[int]:
        """Returns the parts of a source that are in the store whole, and forgets those of any other source."""
        ...

    def finish_part(self, source: str, part: int) -> None:
        """Remembers that a part of a source is in the store whole."""
        ...
