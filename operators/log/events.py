"""What was known at the time: splits, histories, counts and negatives of an interaction log.

Every quantity of an example is made from events strictly before its timestamp; events of the same microsecond do not
count. Examples of a split see events of their own and of earlier splits only, so that under `leave_last`, too, no
test event reaches a training row. What a split holds back belongs to none: validation and test see it, as part of the
past, and nobody learns from it or asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "valid", "test")
HELD_BACK = -1  # in place of the number of a split, see `known_to`
DAY_US = 86_400_000_000
SECOND_US = 1_000_000
RATE_PRIOR = 20.0  # events that the global rate weighs in a smoothed rate


@dataclass(frozen=True)
class Events:
    """Events of a log, or examples: one entry per row in every array [E].

    `user` and `item` are int64 codes from 0, `time` int64 microseconds, `label` float32 (1 or 0).
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Events:
        """Returns the events at positions (or under a mask)."""
        return Events(self.user[rows], self.item[rows], self.time[rows], self.label[rows])

    def extend(self, other: Events) -> Events:
        """These events, then the other ones."""
        return Events(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


def known_to(split: np.ndarray, number: int) -> np.ndarray:
    """Masks the events that examples of a split may know, bool [E]; what is held back is known from validation on.

    Args:
        split: number of every event, or `HELD_BACK`, int8 [E].
        number: of the examples' split.
    """
    return np.abs(split) <= number


def before(
    entity: np.ndarray, time: np.ndarray, of: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per query, the events of entity `of` strictly before `at`, oldest first, as a range of sorted positions.

    Args:
        entity, time: int64 [E], the events.
        of, at: int64 [Q], the queries.
    """
    moments = np.unique(time)
    span = len(moments) + 1  # entity * span + rank sorts by entity, then time, in one integer
    keys = entity * span + np.searchsorted(moments, time)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start = np.searchsorted(keys, of * span)
    return order, start, np.searchsorted(keys, of * span + np.searchsorted(moments, at))


def before_each(entity: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `before` says of the events themselves, some four times as fast."""
    order = np.lexsort((time, entity))
    position = np.arange(len(order))
    sorted_entity, sorted_time = entity[order], time[order]
    other = np.ones(len(order), dtype=bool)  # begins another entity
    other[1:] = sorted_entity[1:] != sorted_entity[:-1]
    later = other.copy()  # begins another moment
    later[1:] |= sorted_time[1:] != sorted_time[:-1]
    start, end = np.empty_like(order), np.empty_like(order)
    start[order] = np.maximum.accumulate(np.where(other, position, 0))
    end[order] = np.maximum.accumulate(np.where(later, position, 0))
    return order, start, end


def flatten(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions start[0]…end[0]-1, start[1]…, one after the other, and the offsets [Q+1] of every range."""
    lengths = end - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets


def first_interactions(events: Events) -> np.ndarray:
    """Masks [E] of the earliest event of every (user, item), the first row among several of one moment."""
    order = np.argsort(events.time, kind="stable")
    pairs = events.user * (events.item.max(initial=0) + 1) + events.item
    _, first = np.unique(pairs[order], return_index=True)
    mask = np.zeros(len(order), dtype=bool)
    mask[order[first]] = True
    return mask


def not_met(
    positives: Events, drawn: np.ndarray, known: Events, *, ratio: int
) -> tuple[Events, np.ndarray, np.ndarray]:
    """Keeps the first `ratio` items drawn for each positive that its user had not met by then.

    Interactions that came later are not looked at. Where too few draws are left, there are fewer.

    Args:
        positives: one example per row, [P].
        drawn: items, int64 [P, K].
        known: every event that may be known, of these users at least.
        ratio: negatives per positive.

    Returns:
        The negatives [M], label 0, M ≤ P * ratio, in the order of their positives; for each its row in `positives` and
        its column in `drawn`.
    """
    items = max(int(drawn.max(initial=0)), int(known.item.max(initial=0))) + 1
    pairs, inverse = np.unique(known.user * items + known.item, return_inverse=True)
    first_time = np.full(len(pairs) + 1, np.iinfo(np.int64).max)  # the last entry answers for pairs never seen
    np.minimum.at(first_time, inverse, known.time)
    wanted = positives.user[:, None] * items + drawn
    found = np.searchsorted(pairs, wanted)
    found[found == len(pairs)] = 0
    found = np.where(pairs[found] == wanted, found, len(pairs)) if len(pairs) else found
    new = first_time[found] > positives.time[:, None]
    row, column = np.nonzero(new & (new.cumsum(axis=1) <= ratio))
    negatives = Events(positives.user[row], drawn[row, column], positives.time[row], np.zeros(len(row), np.float32))
    return negatives, row, column


def own_histories(log: Events, rows: np.ndarray, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `histories` of some of the events, of their own users at their own times.

    Args:
        log: the events.
        rows: of the queries in it, int64 [Q].
        length: of the histories, at most.
    """
    order, start, end = before_each(log.user, log.time)
    liked = log.label[order] > 0
    before_it = np.concatenate([[0], np.cumsum(liked)])  # positives before each place of the order
    first, last = before_it[start[rows]], before_it[end[rows]]
    positions, offsets = flatten(np.maximum(first, last - length), last)
    return log.item[order[liked]][positions].astype(np.int32), offsets.astype(np.int32)


def last_histories(log: Events, users: int, *, length: int | None = None) -> tuple[Events, np.ndarray]:
    """Returns the last `length` positive events of every user, all of them where it is None.

    Returns:
        The events of all users one after the other, each user's oldest first, and offsets (int32 [users + 1]).
    """
    positive = log.take(log.label > 0)
    order = np.lexsort((positive.time, positive.user))
    ends = np.cumsum(np.bincount(positive.user, minlength=users))
    starts = np.concatenate([[0], ends[:-1]])
    positions, offsets = flatten(starts if length is None else np.maximum(starts, ends - length), ends)
    return positive.take(order[positions]), offsets.astype(np.int32)


def histories(log: Events, user: np.ndarray, time: np.ndarray, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the last `length` positive items of each query's user strictly before its time, oldest first.

    Returns:
        Item codes (int32) of all histories one after the other, and offsets (int32 [Q+1]).
    """
    positive = log.take(log.label > 0)
    order, start, end = before(positive.user, positive.time, user, time)
    positions, offsets = flatten(np.maximum(start, end - length), end)
    return positive.item[order[positions]].astype(np.int32), offsets.astype(np.int32)


class Known(NamedTuple):
    """What was known of an entity, or of the whole log, strictly before a moment; int64 [Q] each."""

    events: np.ndarray
    positives: np.ndarray
    first: np.ndarray  # time of the first event, microseconds; anything where there is none


def known_before(log: Events, entity: np.ndarray, of: np.ndarray, at: np.ndarray) -> Known:
    """Counts, per query, the events of entity `of` strictly before `at`.

    Args:
        log: the events, [E].
        entity: int64 [E], users or items of the events.
        of, at: int64 [Q], the queries.
    """
    if not len(log):
        return Known(*np.zeros((3, len(of)), np.int64))
    return _counted(log, *before(entity, log.time, of, at))


def known_before_each(log: Events, entity: np.ndarray) -> Known:
    """Counts, per event, those of its entity strictly before it; see `known_before`."""
    return _counted(log, *before_each(entity, log.time))


def _counted(log: Events, order: np.ndarray, start: np.ndarray, end: np.ndarray) -> Known:
    positives = np.concatenate([[0], np.cumsum(log.label[order] > 0)])
    return Known(end - start, positives[end] - positives[start], log.time[order[np.minimum(start, len(order) - 1)]])


def all_before(log: Events, at: np.ndarray) -> Known:
    """Counts, per query, all events strictly before `at`, int64 [Q]."""
    return known_before(log, np.zeros_like(log.user), np.zeros_like(at), at)


def item_counts(item: Known, total: Known, time: np.ndarray, *, rates: bool) -> dict[str, np.ndarray]:
    """Popularity and age of items strictly before each query's time, float32 [Q] each.

    item_events: log(1 + number of events); item_share: log of the item's share of all events, one added to both;
    item_age: log(1 + days since the item's first event), -1 before it; with `rates`, item_rate: share of positives,
    smoothed by the global rate of that time.
    """
    age = np.log1p(np.maximum(time - item.first, 0) / DAY_US)
    columns = {
        "item_events": np.log1p(item.events),
        "item_share": np.log((item.events + 1) / (total.events + 1)),
        "item_age": np.where(item.events > 0, age, -1),
    }
    if rates:
        columns["item_rate"] = _rate(item, total)
    return {name: values.astype(np.float32) for name, values in columns.items()}


def user_counts(user: Known, total: Known, *, rates: bool) -> dict[str, np.ndarray]:
    """Activity of users strictly before each query's time, float32 [Q] each: user_events and, with `rates`, user_rate.

    They are made as those of items are.
    """
    columns = {"user_events": np.log1p(user.events)}
    if rates:
        columns["user_rate"] = _rate(user, total)
    return {name: values.astype(np.float32) for name, values in columns.items()}


def _rate(of: Known, total: Known) -> np.ndarray:
    known: np.ndarray = (total.positives + 1) / (total.events + 2)
    return (of.positives + RATE_PRIOR * known) / (of.events + RATE_PRIOR)


def counts(log: Events, item: np.ndarray, user: np.ndarray, time: np.ndarray, *, rates: bool) -> dict[str, np.ndarray]:
    """Returns `item_counts` and `user_counts` of a log that is at hand whole."""
    total = all_before(log, time)
    return {
        **item_counts(known_before(log, log.item, item, time), total, time, rates=rates),
        **user_counts(known_before(log, log.user, user, time), total, rates=rates),
    }
