"""What was known at the time: splits, histories, counts and negatives of an interaction log.

Every quantity of an example is made from events strictly before its timestamp; events of the same microsecond do not
count. Examples of a split see events of their own and of earlier splits only, so that under `leave_last`, too, no
test event reaches a training row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "valid", "test")
DAY_US = 86_400_000_000
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


def known_items(log: Events, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Masks [Q] of the queries whose item has an event in the log strictly before their time."""
    _, start, end = before(log.item, log.time, item, time)
    return end > start


def draw_negatives(
    positives: Events, log: Events, *, items: int, ratio: int, seed: int, rounds: int = 10
) -> tuple[Events, np.ndarray]:
    """Negatives for a log without labels, from what existed at each positive's time.

    Mixed negative sampling (Yang et al. 2020, doi 10.1145/3366424.3386195): each draw is, with even odds, the item of
    a random earlier event (so in proportion to its popularity at that time) or a random item that an earlier event
    had shown. Popular items are thereby negatives as well as positives, and popularity alone tells less. Items that
    the user had interacted with by then are drawn again; interactions that came later are not looked at.

    Args:
        positives: one example per row, [P].
        log: every event that may be known, [E].
        items: number of items in all.
        ratio: draws per positive.
        rounds: tries per draw; a draw that has found nothing by then is left out.

    Returns:
        The negatives [M], label 0, M ≤ P * ratio, and for each its row in `positives` [M].
    """
    random = np.random.default_rng(seed)
    by_time = np.argsort(log.time, kind="stable")
    times, recent_items = log.time[by_time], log.item[by_time]
    _, first = np.unique(recent_items, return_index=True)
    first.sort()
    arrived, arrival = recent_items[first], times[first]  # items in order of their first event
    pair = log.user * items + log.item
    pairs, inverse = np.unique(pair, return_inverse=True)
    first_time = np.full(len(pairs) + 1, np.iinfo(np.int64).max)  # the last entry answers for pairs never seen
    np.minimum.at(first_time, inverse, log.time)

    source = np.repeat(np.arange(len(positives)), ratio)
    known_events = np.searchsorted(times, positives.time)
    shown_items = np.searchsorted(arrival, positives.time)
    source = source[known_events[source] > 0]
    drawn = np.full(len(source), -1, dtype=np.int64)
    for _ in range(rounds):
        open_ = np.flatnonzero(drawn < 0)
        rows = source[open_]
        popular = recent_items[(random.random(len(rows)) * known_events[rows]).astype(np.int64)]
        uniform = arrived[(random.random(len(rows)) * shown_items[rows]).astype(np.int64)]
        item = np.where(random.random(len(rows)) < 0.5, popular, uniform)
        wanted = positives.user[rows] * items + item
        found = np.searchsorted(pairs, wanted)
        found[(found == len(pairs)) | (pairs[np.minimum(found, len(pairs) - 1)] != wanted)] = len(pairs)
        drawn[open_] = np.where(first_time[found] <= positives.time[rows], -1, item)
    source, drawn = source[drawn >= 0], drawn[drawn >= 0]
    return Events(positives.user[source], drawn, positives.time[source], np.zeros(len(drawn), dtype=np.float32)), source


def histories(log: Events, user: np.ndarray, time: np.ndarray, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the last `length` positive items of each query's user strictly before its time, oldest first.

    Returns:
        Item codes (int32) of all histories one after the other, and offsets (int32 [Q+1]).
    """
    positive = log.take(log.label > 0)
    order, start, end = before(positive.user, positive.time, user, time)
    positions, offsets = flatten(np.maximum(start, end - length), end)
    return positive.item[order[positions]].astype(np.int32), offsets.astype(np.int32)


def counts(log: Events, item: np.ndarray, user: np.ndarray, time: np.ndarray, *, rates: bool) -> dict[str, np.ndarray]:
    """Popularity, age and activity strictly before each query's time, float32 [Q] each.

    item_events, user_events: log(1 + number of events); item_share: log of the item's share of all events, one added to
    both; item_age: log(1 + days since the item's first event), -1 before it; with `rates`, item_rate
    and user_rate: share of positives, smoothed by the global rate of that time.
    """
    total = np.searchsorted(np.sort(log.time), time)
    columns: dict[str, np.ndarray] = {}
    if rates:
        by_time = np.argsort(log.time, kind="stable")
        positives = np.concatenate([[0], np.cumsum(log.label[by_time], dtype=np.float64)])
        global_rate = (positives[total] + 1) / (total + 2)
    for name, entity, of in (("item", log.item, item), ("user", log.user, user)):
        order, start, end = before(entity, log.time, of, time)
        number = end - start
        columns[f"{name}_events"] = np.log1p(number)
        if name == "item":
            columns["item_share"] = np.log((number + 1) / (total + 1))
            first = log.time[order[np.minimum(start, len(order) - 1)]]
            columns["item_age"] = np.where(number > 0, np.log1p(np.maximum(time - first, 0) / DAY_US), -1)
        if rates:
            cumulative = np.concatenate([[0], np.cumsum(log.label[order], dtype=np.float64)])
            clicked = cumulative[end] - cumulative[start]
            columns[f"{name}_rate"] = (clicked + RATE_PRIOR * global_rate) / (number + RATE_PRIOR)
    return {name: values.astype(np.float32) for name, values in columns.items()}
