"""What a store of users has to do; each implementation passes the same tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

SHOWN, HIDDEN, DELETED = "shown", "hidden", "deleted"  # states of items


class User(NamedTuple):
    """What is kept of a user.

    Attributes:
        items: hashes of the ids of the items that they liked, int64 [n], oldest first; see `storage.hashing.hash_ids`.
        times: of these events, int64 [n], microseconds.
        events: number of all their events, those that are no like included.
        trained: numbers of the runs whose rankers have learned this user's id, the newest first; see
            `serving.ranking.trained_by`.
        disliked: hashes of the ids of the items that they last said they dislike, int64 [m], the newest last.
    """

    items: np.ndarray
    times: np.ndarray
    events: int
    trained: tuple[int, ...]
    disliked: np.ndarray


class Event(NamedTuple):
    """What a user did with an item.

    Attributes:
        user_id, event_id: the same pair again is the same event.
        item_id: of the item, which the catalogue need not have yet.
        kind: such as `view` or `buy`.
        weight: above 0 for a like, below 0 for a dislike.
        time: microseconds.
        recommendation_id: of the answer that showed the item; None where that is not known.
        kept: when it came in, microseconds; 0 where that is not known.
    """

    user_id: str
    event_id: str
    item_id: str
    kind: str
    weight: float
    time: int
    recommendation_id: str | None = None
    kept: int = 0

    @property
    def acted_on(self) -> str | None:
        """The answer that it speaks for."""
        return self.recommendation_id if self.weight > 0 else None


class Impression(NamedTuple):
    """An answer that a user was given.

    Attributes:
        user_id: None for a visitor.
        recommendation_id: of the answer.
        time: microseconds.
        run: name and fingerprint of the run that answered.
        route: that was asked.
        items: ids, by position.
        scores: of the items.
        recommenders: names of those that found each item.
        propensities: probability with which each item got its position.
        since: when the runs began to be served as they were then, microseconds; 0 where that is not known.
        shown: whether the user saw it; not, where a run answers in the shadow of another.
    """

    user_id: str | None
    recommendation_id: str
    time: int
    run: str
    route: str
    items: list[str]
    scores: list[float]
    recommenders: list[list[str]]
    propensities: list[float]
    since: int = 0
    shown: bool = True

    @property
    def counts(self) -> bool:
        """Whether it says something of how users like what a run answers."""
        return self.shown and bool(self.since and self.items) and self.user_id is not None


class Item(NamedTuple):
    """An item that was posted, or what has become of one of the catalogue.

    Attributes:
        item_id: of the item.
        state: `SHOWN`, `HIDDEN` or `DELETED`.
        about: what is known of it, as JSON values; {} for an item of the catalogue, and for one that was deleted.
        vector: its embedding, float32 [D]; of length 0 likewise.
    """

    item_id: str
    state: str
    about: dict[str, Any]
    vector: np.ndarray


class Tally(NamedTuple):
    """What users did with the answers of a run: sums over users, of whom each has n answers and acted on c of them.

    A user has acted on an answer where an event with a weight above 0 names it.

    Attributes:
        users: who had an answer.
        answers, acted: sums of n and of c.
        answers_squared, both, acted_squared: sums of n * n, of n * c and of c * c.
    """

    users: int = 0
    answers: int = 0
    acted: int = 0
    answers_squared: int = 0
    both: int = 0
    acted_squared: int = 0


class UserStore(Protocol):
    """Users by id. Several processes may read one store at once."""

    def read(self, user_ids: Sequence[str]) -> list[User | None]:
        """Returns the users of these ids; None for one that it does not have."""
        ...

    def count(self) -> int:
        """Returns the number of users."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


class EventStore(UserStore, Protocol):
    """A store that learns what users do. What a call has returned from outlives the process, however it ends."""

    def add(self, events: Sequence[Event]) -> int:
        """Keeps events and what they change of their users, all or none; returns how many were new.

        An event of before its user was forgotten is not kept: it may come late.
        """
        ...

    def show(self, impressions: Sequence[Impression]) -> None:
        """Keeps answers that users were given, likewise."""
        ...

    def events(self, user_ids: Sequence[str]) -> list[Event]:
        """Returns the events of these users, in no order."""
        ...

    def tallies(self, since: int) -> dict[str, Tally]:
        """Returns by run what became of the answers that users were shown, of those with this `since`."""
        ...

    def drop_tallies(self, before: int) -> None:
        """Removes the counts, but no answers, of all that began to be served earlier, microseconds."""
        ...

    def every_event(self) -> Iterator[list[Event]]:
        """Yields all events, some at a time; those of a user may come twice where others write meanwhile."""
        ...

    def every_impression(self) -> Iterator[list[Impression]]:
        """Yields all impressions, likewise."""
        ...

    def forget(self, user_id: str, time: int) -> None:
        """Removes all that is kept of a user, and remembers that this was done at a time, in microseconds."""
        ...

    def forgotten(self) -> dict[str, int]:
        """Returns the users that were forgotten, and when."""
        ...


class ItemStore(Protocol):
    """Items that were posted, and what has become of the catalogue's; every write makes a new version of them all."""

    def items_version(self) -> int:
        """Returns the version, 0 before the first write."""
        ...

    def items_after(self, version: int) -> tuple[int, list[Item]]:
        """Returns the version, and what items were written since another one, as they are now, oldest write first.

        Where others write meanwhile, the newest of these writes may come with the next version, too.
        """
        ...

    def keep_item(self, item: Item, *, version: int, picture: bytes | None = None) -> bool:
        """Keeps an item in place of what was kept of it, unless others have written since a version; says whether.

        What it has kept outlives the process, however it ends.

        Args:
            item: the item.
            version: on which the writer has based what it writes.
            picture: a file; None keeps what is there, an empty one removes it.
        """
        ...

    def item_picture(self, item_id: str) -> bytes | None:
        """Returns the picture that is kept of an item."""
        ...


class Note(NamedTuple):
    """A text that processes leave for each other, and how often it was written."""

    version: int
    text: str


class NoteStore(Protocol):
    """Small texts by name: which runs are served, and how each replica does."""

    def notes(self, prefix: str) -> dict[str, Note]:
        """Returns the notes whose names begin so."""
        ...

    def keep_note(self, name: str, text: str, *, version: int | None = None) -> bool:
        """Writes a note, unless one of another version than a given one is there (0: none); says whether."""
        ...

    def drop_note(self, name: str) -> None:
        """Removes a note."""
        ...


class ServedStore(EventStore, ItemStore, NoteStore, Protocol):
    """What the service needs of a store."""


class LoadableStore(ServedStore, Protocol):
    """A store that is filled from a source of numbered parts, and remembers how far that has come."""

    def write(self, user_ids: Sequence[str], users: Sequence[User], *, until: int, replace: bool = True) -> None:
        """Adds users as a log knows them, and replaces those that it has, unless it should not; all of them or none.

        What the store's own events later than `until`, the end of the log in microseconds, change of them is added, as
        are likes that came in later and that the log lacks; what they dislike stays. Whose rankers have learned a
        user's id becomes known in either case. Who was forgotten stays so.
        """
        ...

    def begin_load(self, source: str) -> set[int]:
        """Returns the parts of a source that are in the store whole, and forgets those of any other source."""
        ...

    def finish_part(self, source: str, part: int) -> None:
        """Remembers that a part of a source is in the store whole."""
        ...
