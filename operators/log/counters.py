"""What was known of every item, and of the whole log, before each event: counted range of time by range of time.

The events of all users are dealt to ranges of time. What all items had come to at the start of a range is a `State`:
counts over the ranges before. With that, a range answers for its own events without looking at any other.

Under a split that is not by time, an example may know fewer events than came before it: those of its own and of earlier
splits. Events are then counted once for each split that may know them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from operators.log.events import SPLITS, Events, Known, known_before, known_before_each, known_to
from storage.hashing import draw_uniform

LATEST = np.iinfo(np.int64).max


class State(NamedTuple):
    """What N items had come to at some time, by the splits that may know it."""

    items: tuple[Known, ...]  # [N] each; one where the split is by time, one for each split otherwise

    @classmethod
    def empty(cls, items: int, splits: int) -> State:
        """Returns the state at the start of the log."""
        nothing = (np.zeros(items, np.int64), np.zeros(items, np.int64), np.full(items, LATEST))
        return cls(tuple(Known(*(values.copy() for values in nothing)) for _ in range(splits)))

    def add(self, tally: pa.Table) -> None:
        """Adds what `tally` has counted in the range that follows."""
        rows = tally["item"].to_numpy()
        for number, known in enumerate(self.items):
            known.events[rows] += tally[f"events{number}"].to_numpy()
            known.positives[rows] += tally[f"positives{number}"].to_numpy()
            known.first[rows] = np.minimum(known.first[rows], tally[f"first{number}"].to_numpy())

    def to_arrow(self) -> pa.Table:
        """Returns it as one row for each item."""
        return pa.table(
            {
                f"{name}{number}": values
                for number, known in enumerate(self.items)
                for name, values in known._asdict().items()
            }
        )

    @classmethod
    def from_arrow(cls, table: pa.Table) -> State:
        """Reads what `to_arrow` has written."""
        splits = len(table.column_names) // len(Known._fields)
        return cls(tuple(Known(*(table[f"{name}{n}"].to_numpy() for name in Known._fields)) for n in range(splits)))


def in_all(items: Known, queries: int) -> Known:
    """Returns the counts of all items together, for so many queries."""
    totals = (int(items.events.sum()), int(items.positives.sum()), int(items.first.min(initial=0)))
    return Known(*(np.full(queries, total) for total in totals))


def tally(rows: pa.Table, splits: int) -> pa.Table:
    """Counts the events of a range by item, for `State.add`.

    Args:
        rows: item, time, positive, split of the events.
        splits: see `State`.
    """
    items, code = np.unique(rows["item"].to_numpy(), return_inverse=True)
    columns = {"item": items}
    for number, events in enumerate(_known_to(rows, splits)):
        own, count = code[events], len(items)
        first = np.full(count, LATEST)
        np.minimum.at(first, own, rows["time"].to_numpy()[events])
        columns[f"events{number}"] = np.bincount(own, minlength=count)
        columns[f"positives{number}"] = np.bincount(own[rows["positive"].to_numpy()[events] > 0], minlength=count)
        columns[f"first{number}"] = first
    return pa.table(columns)


def answer(rows: pa.Table, state: State, *, draws: int) -> pa.Table:
    """Says of every event of a range what was known before it.

    Args:
        rows: item (int32), time (int64), positive (int8), split (int8) of the events of a range; with draws also `key`,
            an uint64 that seeds the draws of the row.
        state: at the start of the range.
        draws: items to draw for each row, see `draw`; 0 for none.

    Returns:
        events, positives, first of the event's item; total_events, total_positives of the log; and with draws `drawn`,
        drawn_events, drawn_first: fixed_size_list<int64>[draws]. In the order of the rows.
    """
    item, time = rows["item"].to_numpy().astype(np.int64), rows["time"].to_numpy()
    split = rows["split"].to_numpy()
    columns = {
        name: np.zeros(len(item), np.int64)
        for name in ("events", "positives", "first", "total_events", "total_positives")
    }
    lists = {name: np.zeros((len(item), draws), np.int64) for name in ("drawn", "drawn_events", "drawn_first")}
    label = rows["positive"].to_numpy().astype(np.float32)
    log = Events(np.zeros_like(item), item, time, label)
    for number, (mask, before) in enumerate(zip(_known_to(rows, len(state.items)), state.items, strict=True)):
        asked = np.flatnonzero(split == number) if len(state.items) > 1 else np.arange(len(item))
        known = log.take(mask)
        place = np.cumsum(mask)[asked] - 1  # of the asked events among the known ones
        own = known_before_each(known, known.item)
        found = _since(before, item[asked], Known(*(values[place] for values in own)))
        total = Known(*(values[place] for values in known_before_each(known, known.user)))
        columns["events"][asked], columns["positives"][asked], columns["first"][asked] = found
        columns["total_events"][asked] = total.events + before.events.sum()
        columns["total_positives"][asked] = total.positives + before.positives.sum()
        if draws and len(asked):
            drawn = draw(rows["key"].to_numpy()[asked], time[asked], known, before, draws=draws)
            there = known_before(known, known.item, drawn.ravel(), np.repeat(time[asked], draws))
            there = _since(before, drawn.ravel(), there)
            lists["drawn"][asked] = drawn
            lists["drawn_events"][asked] = there.events.reshape(drawn.shape)
            lists["drawn_first"][asked] = there.first.reshape(drawn.shape)
    if draws:
        columns |= {name: _lists(values) for name, values in lists.items()}
    return pa.table(columns)


def draw(key: np.ndarray, time: np.ndarray, log: Events, before: Known, *, draws: int) -> np.ndarray:
    """Draws items that may serve as negatives of a log without labels, from what existed at each query's time.

    Mixed negative sampling (Yang et al. 2020, doi 10.1145/3366424.3386195): each draw is, with even odds, the item of
    a random earlier event (so in proportion to its popularity at that time) or a random item that an earlier event
    had shown. Popular items are thereby negatives as well as positives, and popularity alone tells less.

    Args:
        key: uint64 [Q], what the draws of a query depend on.
        time: int64 [Q].
        log: the events of the range, which may be known.
        before: of all items, what had happened before the range.
        draws: per query.

    Returns:
        int64 [Q, draws]; where nothing came before, any item.
    """
    order = np.lexsort((log.item, log.time))
    times, items = log.time[order], log.item[order]
    arrived = np.flatnonzero(before.events > 0)
    new, first = np.unique(items, return_index=True)
    first = np.sort(first[before.events[new] == 0])
    shown = np.concatenate([arrived, items[first]])
    recent = np.searchsorted(times, time)
    popularity = np.cumsum(before.events)
    total = int(popularity[-1]) if len(popularity) else 0
    number_shown = len(arrived) + np.searchsorted(times[first], time)
    columns = []
    for number in range(draws):
        at = (draw_uniform(key, 3 * number) * (total + recent)).astype(np.int64)
        old = np.searchsorted(popularity, np.minimum(at, max(total - 1, 0)), side="right")
        young = items[np.clip(at - total, 0, max(len(items) - 1, 0))] if len(items) else at
        popular = np.where(at < total, np.minimum(old, max(len(popularity) - 1, 0)), young)
        uniform = (draw_uniform(key, 3 * number + 1) * number_shown).astype(np.int64)
        uniform = shown[np.minimum(uniform, max(len(shown) - 1, 0))] if len(shown) else uniform
        columns.append(np.where(draw_uniform(key, 3 * number + 2) < 0.5, popular, uniform))
    return np.stack(columns, axis=1)


def _known_to(rows: pa.Table, splits: int) -> list[np.ndarray]:
    """Returns which events each split may know; by time all, since an example knows no later ones anyway."""
    split = rows["split"].to_numpy()
    if splits == 1:
        return [np.ones(len(split), dtype=bool)]
    return [known_to(split, number) for number in range(len(SPLITS))]


def _since(before: Known, item: np.ndarray, since: Known) -> Known:
    """Returns what was known of items, from the state of all of them and what was counted since."""
    first = np.minimum(before.first[item], np.where(since.events > 0, since.first, LATEST))
    return Known(before.events[item] + since.events, before.positives[item] + since.positives, first)


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.int64()), values.shape[1])
