"""What next-item models learn from and are asked: the positives of users, in order of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from models.common.jagged import Jagged, chained, from_arrays
from models.common.recommender import Queries
from operators.log.counters import State
from operators.log.events import SPLITS, Events, Known, first_interactions, histories, known_to
from operators.log.partitions import PartitionedLog
from operators.log.split import Split
from storage.hashing import hash_numbers


class Training(NamedTuple):
    """What the training part of a log says of N items."""

    items: Known  # [N] each
    last: int  # time of its last event, microseconds

    @property
    def positives(self) -> np.ndarray:
        """Positive events of each item, int64 [N]."""
        return self.items.positives

    @property
    def warm(self) -> np.ndarray:
        """Items with an event of any kind, bool [N]."""
        return self.items.events > 0


class SplitPart(NamedTuple):
    """A partition of a log, in the order of time, then user, item and label."""

    events: Events  # `user` is a position in `users`
    split: np.ndarray  # int8 [E]
    users: np.ndarray  # int64 [U], hashes


def training_sequences(events: Events, split: np.ndarray) -> Jagged:
    """Returns the positives of training, user by user, oldest first; users without one are left out.

    Args:
        events: of a log.
        split: number of every event, int8 [E].
    """
    chosen = events.take((split == 0) & (events.label > 0))
    order = np.lexsort((chosen.time, chosen.user))
    lengths = np.bincount(chosen.user)
    ends = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
    return Jagged(torch.from_numpy(chosen.item[order]), torch.from_numpy(ends))


def queries(
    events: Events, split: np.ndarray, name: str, *, history: int, repeats: bool, rows: np.ndarray | None = None
) -> Queries:
    """Returns the positives of a split as questions, each with what was known strictly before it.

    Args:
        events: of a log.
        split: number of every event, int8 [E].
        name: of the split that is asked about; events of later ones are not known.
        history: positives that are kept.
        repeats: whether items are asked for that the user had met before.
        rows: of the events that are asked about; all of the split's where it is None.
    """
    targets = events.take(are_asked(events, split, name, repeats=repeats) if rows is None else rows)
    known = events.take(known_to(split, SPLITS.index(name)))
    known = known.take(np.isin(known.user, targets.user))
    met = Events(known.user, known.item, known.time, np.ones_like(known.label))
    return Queries(
        targets.user,
        from_arrays(*histories(known, targets.user, targets.time, length=history)),
        torch.from_numpy(targets.item),
        from_arrays(*histories(met, targets.user, targets.time, length=0 if repeats else len(met))),
        targets.time,
    )


def split_parts(log: PartitionedLog, split: Split) -> Iterator[SplitPart]:
    """Yields the partitions of a log one by one.

    Raises:
        UserError: the log cannot be split so.
    """
    return (split_part(log, split, number) for number in range(log.about.partitions))


def split_part(log: PartitionedLog, split: Split, number: int) -> SplitPart:
    """Reads a partition of a log; see `split_parts`."""
    part = log.part(number)
    numbers = split.numbers(part.events, log.cuts(split))
    order = np.lexsort((part.events.label, part.events.item, part.events.user, part.events.time))
    return SplitPart(part.events.take(order), numbers[order], part.users)


def read_training(log: PartitionedLog, split: Split) -> Training:
    """Counts what the training part of a log says of its items, partition by partition."""
    count, last = len(log.items), log.about.first
    (found,) = State.empty(count, 1).items
    for events, numbers, _ in split_parts(log, split):
        trained = events.take(numbers == 0)
        found.events[:] += np.bincount(trained.item, minlength=count)
        found.positives[:] += np.bincount(trained.item[trained.label > 0], minlength=count)
        np.minimum.at(found.first, trained.item, trained.time)
        last = max(last, int(trained.time.max(initial=last)))
    return Training(found, last)


def read_queries(
    log: PartitionedLog, split: Split, name: str, *, history: int, repeats: bool, most: int, seed: int
) -> Queries:
    """Returns a random sample of at most so many questions of a split, partition by partition.

    The sample are those with the lowest hashes of user, item and time, in that order: it is the same for any number of
    partitions, and begins with any smaller one. Users are given by their hashes. Lists are made of what the sample of
    the partitions so far holds.

    Args:
        log, split: whose questions they are.
        name, history, repeats: see `queries`.
        most: size of the sample.
        seed: of the draw.
    """
    lowest, found = np.empty(0, np.uint64), list[Queries]()
    for part in split_parts(log, split):
        rows = np.flatnonzero(are_asked(part.events, part.split, name, repeats=repeats))
        targets = part.events.take(rows)
        hashes = _hashes(log, part.users[targets.user], targets.item, targets.time, seed)
        lowest = np.sort(np.concatenate([lowest, hashes]))[:most]
        rows = rows[hashes <= lowest.max(initial=0)]
        asked = queries(part.events, part.split, name, history=history, repeats=repeats, rows=rows)
        found.append(asked._replace(user=part.users[asked.user]))
        if sum(len(each.target) for each in found) > 2 * most:  # seldom, as lists are copied
            found = [_sampled(log, found, most, seed)]
    return _sampled(log, found, most, seed)


def _sampled(log: PartitionedLog, parts: Sequence[Queries], most: int, seed: int) -> Queries:
    user, time = (np.concatenate([getattr(each, name) for each in parts]) for name in ("user", "time"))
    histories, seen = (chained([getattr(each, name) for each in parts]) for name in ("histories", "seen"))
    found = Queries(user, histories, torch.cat([each.target for each in parts]), seen, time)
    return found.take(np.argsort(_hashes(log, user, found.target.numpy(), time, seed), kind="stable")[:most])


def _hashes(log: PartitionedLog, user: np.ndarray, item: np.ndarray, time: np.ndarray, seed: int) -> np.ndarray:
    return hash_numbers(user, log.items[item], time, seed=seed)


def are_asked(events: Events, split: np.ndarray, name: str, *, repeats: bool) -> np.ndarray:
    """Masks the events that `queries` asks for, bool [E]."""
    asked = (split == SPLITS.index(name)) & (events.label > 0)
    return asked if repeats else asked & first_interactions(events)
