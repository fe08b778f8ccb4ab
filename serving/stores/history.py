"""What events change of a user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.stores.base import Event, User
from storage.hashing import hash_ids

NOBODY = User(np.empty(0, np.int64), np.empty(0, np.int64), 0, (), np.empty(0, np.int64))
MOST_TRAINED = 4  # runs of which it is known that they learned a user's id: two side by side, and two to go back to


def after(user: User | None, events: Sequence[Event]) -> User:
    """Returns a user after events that are new, in any order.

    A like comes into the history at its time, behind what was liked at the same time, and ends a dislike of its item.
    A dislike leaves the history as it is: what somebody liked once stays true, and `features` would read it so.
    """
    known = NOBODY if user is None else user
    if not events:
        return known
    ordered = sorted(events, key=lambda event: event.time)
    hashes = hash_ids([event.item_id for event in ordered]).astype(np.int64)
    weights = np.array([event.weight for event in ordered])
    times = np.array([event.time for event in ordered], np.int64)
    liked = weights > 0
    at = np.searchsorted(known.times, times[liked], side="right")
    disliked = dict.fromkeys(known.disliked.tolist())
    for item, weight in zip(hashes.tolist(), weights.tolist(), strict=True):
        if weight:
            disliked.pop(item, None)
        if weight < 0:
            disliked[item] = None
    return User(
        np.insert(known.items, at, hashes[liked]),
        np.insert(known.times, at, times[liked]),
        known.events + len(ordered),
        known.trained,
        np.array(list(disliked), np.int64),
    )


def loaded(user: User, old: User | None, own: Sequence[Event], *, until: int, replace: bool) -> User:
    """Returns what to keep of a user whom a log knows, too.

    Events count that are later than the log, and likes that came in after its end and that it lacks. A log knows no
    dislikes: they are those of the events, but for items that the log likes later.

    Args:
        user: as the log knows them.
        old: as they are known; None for somebody new.
        own: all their events that are kept.
        until: the end of the log, microseconds.
        replace: whether the log says more than what is known.
    """
    known = () if old is None else old.trained
    trained = tuple(dict.fromkeys((*user.trained, *known)))[:MOST_TRAINED]
    if old is not None and not replace:
        return old._replace(trained=trained)
    user = user._replace(trained=trained)
    if not own:
        return user
    likes = list(zip(user.items.tolist(), user.times.tolist(), strict=True))
    there, last = set(likes), dict(likes)  # the last like of each item, for they stand in the order of time
    new, stand = list[Event](), list[Event]()
    for item, event in zip(hash_ids([event.item_id for event in own]).tolist(), own, strict=True):
        came_late = event.kept > until and event.weight > 0 and (item, event.time) not in there
        new += [event] * (event.time > until or came_late)
        stand += [event] * (event.time >= last.get(item, event.time))
    return after(user, new)._replace(disliked=after(None, stand).disliked)
