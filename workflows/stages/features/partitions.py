"""The work of features on the log, piece by piece: partitions of users, and ranges of time for what spans users.

1. Every partition deals its events to ranges of time (`deal_events`).
2. Every range counts its events by item (`tally_range`); what all items had come to at the start of each range follows
   by adding up the ranges before (`add_up`).
3. Every range answers what was known before each of its events (`answer_range`).
4. Every partition writes its examples and its users (`write_part`).

No piece holds more than a partition or a range, and counts of all items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from operators.features.long_history import read_prefixes, shared_prefixes
from operators.features.tokens import NULL_ID
from operators.log.counters import State, answer, in_all, tally
from operators.log.events import (
    SPLITS,
    Known,
    first_interactions,
    item_counts,
    known_before_each,
    known_to,
    last_histories,
    not_met,
    own_histories,
    user_counts,
)
from operators.log.partitions import Part, PartitionedLog, open_log, rows_among
from operators.log.split import Split, SplitTime
from storage import exchange, files
from storage.hashing import hash_numbers
from storage.run import RunDir

SPARE = 4  # draws per positive beyond the negatives wanted, for items that the user has met


@dataclass(frozen=True)
class Work:
    """What every piece has to know.

    Attributes:
        root: URI of the run.
        folder: URI of what the pieces hand on.
        split, cuts: of the log, see `operators.log.split`.
        ranges: times at which ranges of time begin, but for the first.
        labelled: whether the log has labels of both kinds.
        history, long_history, negatives: settings of the stage.
        seed: of the workflow.
    """

    root: str
    folder: str
    split: Split
    cuts: tuple[int, ...]
    ranges: tuple[int, ...]
    labelled: bool
    history: int
    long_history: int
    negatives: int
    seed: int

    @property
    def run(self) -> RunDir:
        """The run."""
        return RunDir(self.root)

    @property
    def splits(self) -> int:
        """How many counts of events are kept, see `operators.log.counters`."""
        return 1 if isinstance(self.split, SplitTime) else len(SPLITS)

    def uri(self, kind: str, number: int | str) -> str:
        """Returns the URI of a file that pieces hand on."""
        return files.join(self.folder, kind, f"{number}.arrow")

    def range_of(self, time: np.ndarray) -> np.ndarray:
        """Returns the number of the range of each time, int64 [E]."""
        return np.searchsorted(np.array(self.ranges, np.int64), time, side="right")

    def state(self, number: int | str) -> State:
        """Returns what the items had come to at the start of a range, or at the `end`."""
        return State.from_arrow(exchange.collect([self.uri("states", number)]))

    def warm_items(self) -> np.ndarray:
        """Returns the items with an event in training, bool [N]."""
        known = self.state("end").items[0]
        return known.first < self.cuts[0] if self.splits == 1 else known.events > 0


def deal_events(work: Work, number: int) -> dict[str, int]:
    """Deals the events of a partition to the ranges of time."""
    log = open_log(work.run)
    part = log.part(number)
    events = part.events
    rows = {
        "item": events.item.astype(np.int32),
        "time": events.time,
        "positive": (events.label > 0).astype(np.int8),
        "split": work.split.numbers(events, work.cuts),
    }
    if not work.labelled:
        rows["key"] = hash_numbers(part.users[events.user], log.items[events.item], events.time, seed=work.seed)
    exchange.deal(work.uri("events", number), pa.table(rows), work.range_of(events.time), len(work.ranges) + 1)
    return {"events": len(events)}


def tally_range(work: Work, partitions: int, number: int) -> dict[str, int]:
    """Counts the events of a range by item."""
    rows = pa.concat_tables(_of_range(work, partitions, number))
    counted = tally(rows, work.splits)
    exchange.deal(work.uri("tallies", number), counted)
    return {"events": rows.num_rows}


def add_up(work: Work, items: int) -> dict[str, int]:
    """Writes what the items had come to at the start of every range, and at the end."""
    state = State.empty(items, work.splits)
    for number in [*range(len(work.ranges) + 1), "end"]:
        exchange.deal(work.uri("states", number), state.to_arrow())
        if number != "end":
            state.add(exchange.collect([work.uri("tallies", number)]))
    return {"events": int(state.items[-1].events.sum())}


def answer_range(work: Work, partitions: int, number: int) -> dict[str, int]:
    """Says of every event of a range what was known before it, and deals the answers to the partitions."""
    draws = 0 if work.labelled else work.negatives + SPARE
    tables = _of_range(work, partitions, number)
    answers = answer(pa.concat_tables(tables), work.state(number), draws=draws)
    owner = np.repeat(np.arange(partitions), [table.num_rows for table in tables])
    exchange.deal(work.uri("answers", number), answers, owner, partitions)
    return {"events": answers.num_rows}


def write_part(work: Work, number: int) -> dict[str, Any]:
    """Writes the examples and the users of a partition, features/{train,valid,test,users}.

    Returns:
        Counts of rows for each split, and of the events and users of the partition.
    """
    run = work.run
    log = open_log(run)
    part = log.part(number)
    events, numbers = part.events, work.split.numbers(part.events, work.cuts)
    # The batches of the ranges, one after the other, have the events in this order.
    order = np.argsort(work.range_of(events.time), kind="stable")
    dealt = exchange.collect([work.uri("answers", one) for one in range(len(work.ranges) + 1)], number)
    answers = dealt.take(pa.array(np.argsort(order, kind="stable")))
    trained = np.zeros(len(part.users), dtype=bool)
    trained[events.user[numbers == 0]] = True
    users = np.where(trained, part.users, NULL_ID)
    warm = work.warm_items()
    repeats = 0 if work.labelled else int((~first_interactions(events)).sum())
    found: dict[str, Any] = {"events": len(events), "users": len(part.users), "repeats": repeats}
    for name in SPLITS:
        table, left_out = _examples(work, part, numbers, answers, users, name)
        files.write_part(files.part_uri(run.uri("features", name), number), table)
        label, row = table["label"].to_numpy(), table["row"].to_numpy()
        found[name] = {
            "rows": table.num_rows,
            "first_of_item": left_out,
            "positives": int((label > 0).sum()),
            "cold_users": int((table["user"].to_numpy() == NULL_ID).sum()),
            "cold_items": int((~warm[row]).sum()),
        }
    _write_users(work, log, part, users, number)
    return found


def _of_range(work: Work, partitions: int, number: int) -> list[pa.Table]:
    """Reads the events of a range, those of each partition by themselves.

    Raises:
        RuntimeError: one belongs to another range.
    """
    tables = [exchange.collect([work.uri("events", part)], number) for part in range(partitions)]
    if any((work.range_of(table["time"].to_numpy()) != number).any() for table in tables):
        raise RuntimeError(f"events of another range of time came to range {number}")
    return tables


def _examples(
    work: Work, part: Part, numbers: np.ndarray, answers: pa.Table, users: np.ndarray, name: str
) -> tuple[pa.Table, int]:
    """Returns the examples of a split, by time, and how many events are left out as the first ones of their item.

    Without labels the task is discovery, as in serving: an item is an example when a user first meets it. Negatives are
    drawn from items that had an event, so that a first event of an item would give its label away.
    """
    number = SPLITS.index(name)
    known = part.events.take(known_to(numbers, number))
    mask = numbers == number
    if not work.labelled:
        mask &= first_interactions(part.events)
    rows = np.flatnonzero(mask)
    found = part.events.take(rows)
    rows = rows[np.lexsort((found.label, found.item, found.user, found.time))]
    left_out = 0
    if not work.labelled:
        met_before = answers["events"].to_numpy()[rows] > 0
        left_out, rows = int((~met_before).sum()), rows[met_before]
    found, before = part.events.take(rows), answers.take(pa.array(rows))
    item = Known(*(before[column].to_numpy() for column in Known._fields))
    if not work.labelled:
        drawn, *of_drawn = (_matrix(before[column]) for column in ("drawn", "drawn_events", "drawn_first"))
        negatives, source, column = not_met(found, drawn, known, ratio=work.negatives)
        events, first = (values[source, column] for values in of_drawn)
        of_negatives = Known(events, np.zeros_like(events), first)
        item = Known(*(np.concatenate(pair) for pair in zip(item, of_negatives, strict=True)))
        found, source = found.extend(negatives), np.concatenate([np.arange(len(rows)), source])
        rows, before = rows[source], before.take(pa.array(source))
    total = Known(*(before[column].to_numpy() for column in ("total_events", "total_positives", "first")))
    place = np.cumsum(known_to(numbers, number))[rows] - 1  # of the examples among the known events
    user = Known(*(values[place] for values in known_before_each(known, known.user)))
    context = part.context.take(pa.array(rows))
    shared = dict[str, Any]()
    if length := work.long_history:
        asked = (found.user, found.item, found.time)
        shared = shared_prefixes(known, read_prefixes(work.run), *asked, length=length).columns()
    columns = {
        "row": found.item.astype(np.int32),
        "user": users[found.user],
        "user_hash": part.users[found.user],
        "history": _lists(*own_histories(known, place, length=work.history)),
        **item_counts(item, total, found.time, rates=work.labelled),
        **user_counts(user, total, rates=work.labelled),
        **{name: context[name] for name in context.column_names},
        **shared,
        "label": found.label,
        "timestamp": pa.array(found.time, pa.timestamp("us", tz="UTC")),
    }
    return pa.table(columns), left_out


def _write_users(work: Work, log: PartitionedLog, part: Part, users: np.ndarray, number: int) -> None:
    """Writes the users of a partition with what is known of them after the last event."""
    events, count = part.events, len(part.users)
    names = log.users(number)
    at, named = rows_among(names["user"].to_numpy(), part.users)
    if not named.all():
        raise RuntimeError(f"partition {number} of the log lacks the ids of {int((~named).sum())} users")
    met = np.bincount(events.user, minlength=count)
    known = Known(met, np.bincount(events.user[events.label > 0], minlength=count), met)
    (last, of_last), (seen, of_seen) = (last_histories(events, count, length=most) for most in (work.history, None))
    table = {
        "user_id": names["user_id"].take(pa.array(at)),
        "user_hash": part.users,
        "user": users,
        "history": _lists(last.item.astype(np.int32), of_last),
        "seen": _lists(seen.item.astype(np.int32), of_seen),
        "seen_time": _lists(seen.time, of_seen),
        "events": met,
        **user_counts(known, in_all(work.state("end").items[-1], count), rates=work.labelled),
    }
    files.write_part(files.part_uri(work.run.uri("features", "users"), number), pa.table(table))


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(offsets, values)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.combine_chunks().flatten().to_numpy().reshape(len(column), column.type.list_size)
    return values
