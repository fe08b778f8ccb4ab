from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from models.common.jagged import Jagged
from models.common.recommender import Queries
from operators.columns import matrix_column
from operators.log import sequences
from operators.log.encoding import encode
from operators.log.events import SPLITS, Events
from operators.log.partitions import item_ids, open_log
from operators.log.sequences import queries, read_queries, read_training, training_sequences
from operators.log.split import Split, SplitLeaveLast, SplitTime, split_numbers
from storage.errors import UserError
from storage.run import RunDir
from tests.logs import write_log

LEAVE_LAST = SplitLeaveLast(kind="leave_last")
ONE_MORE = SplitLeaveLast(kind="leave_last", held_back=2)
BY_TIME = SplitTime(valid=0.2, test=0.2)


class Event(NamedTuple):
    """One of a log."""

    user: int
    item: int
    time: int
    label: int
    split: int


def rows(lists: Jagged) -> list[list[int]]:
    return [part.tolist() for part in lists.values.split(lists.offsets.diff().tolist())]


@st.composite
def logs(draw: st.DrawFn) -> tuple[Events, np.ndarray]:
    """A log in order of time, of few users, items and moments, and one of its splits."""
    entries = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.sampled_from([0, 1, 1])),
            min_size=3,
            max_size=40,
        )
    )
    columns = np.array(sorted(entries, key=lambda entry: (entry[2], *entry))).T
    events = Events(columns[0], columns[1], columns[2], columns[3].astype(np.float32))
    try:
        return events, split_numbers(draw(st.sampled_from([LEAVE_LAST, ONE_MORE, BY_TIME])), events)
    except UserError:
        assume(False)
        raise


def listed(events: Events, split: np.ndarray) -> list[Event]:
    columns = (events.user, events.item, events.time, events.label, split)
    return [Event(*map(int, row)) for row in zip(*columns, strict=True)]


@given(logs())
def test_training_sequences_are_the_positives_of_training_by_user_and_time(log: tuple[Events, np.ndarray]) -> None:
    events = listed(*log)
    wanted = []
    for user in range(4):
        own = [event.item for event in events if event.user == user and event.label and event.split == 0]
        if own:
            wanted.append(own)
    found = training_sequences(*log)
    assert (rows(found) if wanted else found.values.tolist()) == wanted
    assert found.values.dtype == found.offsets.dtype == torch.int64


@given(logs(), st.sampled_from(["valid", "test"]), st.integers(1, 4), st.booleans())
def test_queries_show_what_was_known_strictly_before(
    log: tuple[Events, np.ndarray], name: str, history: int, repeats: bool
) -> None:
    events, number = listed(*log), SPLITS.index(name)
    users, targets, histories, seen = [], [], [], []
    for at, event in enumerate(events):
        if event.split != number or not event.label:
            continue
        mine = [(place, other) for place, other in enumerate(events) if other.user == event.user]
        earlier = [other for place, other in mine if (other.time, place) < (event.time, at)]
        if not repeats and any(other.item == event.item for other in earlier):
            continue
        known = [other for _, other in mine if other.time < event.time and abs(other.split) <= number]
        users.append(event.user)
        targets.append(event.item)
        histories.append([other.item for other in known if other.label][-history:])
        seen.append([other.item for other in known])
    found = queries(*log, name, history=history, repeats=repeats)
    assert found.user.tolist() == users
    assert found.target.tolist() == targets
    assert rows(found.histories) == histories
    assert rows(found.seen) == ([[] for _ in seen] if repeats else seen)
    assert found.histories.values.dtype == found.seen.offsets.dtype == torch.int64


@given(logs(), st.randoms(use_true_random=False))
def test_what_later_splits_hold_changes_nothing(log: tuple[Events, np.ndarray], random: random.Random) -> None:
    events, split = log

    def changed(later: np.ndarray) -> Events:
        item, label = events.item.copy(), events.label.copy()
        for row in np.flatnonzero(later):
            item[row], label[row] = random.randrange(5), random.randrange(2)
        return Events(events.user, item, events.time, label)

    logs = events, changed(split == 2)
    one, two = (queries(part, split, "valid", history=3, repeats=False) for part in logs)
    assert one.target.tolist() == two.target.tolist()
    assert rows(one.histories) == rows(two.histories)
    assert rows(one.seen) == rows(two.seen)
    first, second = (training_sequences(part, split) for part in (events, changed(split != 0)))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.offsets, second.offsets)


def test_one_more_event_held_back_is_shown_and_neither_learned_nor_asked_for() -> None:
    """Validation is then asked as test is: behind an event that nobody has learned from."""
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(40), random.integers(1, 9, 40))
    place = np.concatenate([np.arange(count) for count in np.bincount(user)])
    events = Events(user, np.arange(len(user)), 10 * place + user, np.ones(len(user), np.float32))
    own = [np.flatnonzero(user == one).tolist() for one in range(40)]  # items, oldest first
    long = [items for items in own if len(items) >= 3]
    split = split_numbers(ONE_MORE, events)
    learned = [items if len(items) < 3 else items[:-3] for items in own]
    assert rows(training_sequences(events, split)) == [items for items in learned if items]
    for name, end in (("valid", -2), ("test", -1)):
        found = queries(events, split, name, history=9, repeats=False)
        assert found.target.tolist() == [items[end] for items in long]
        assert rows(found.histories) == rows(found.seen) == [items[:end] for items in long]
    plain = split_numbers(LEAVE_LAST, events)
    assert np.array_equal(np.where(split < 0, 0, split), plain)
    assert [items[-3] for items in long] == events.item[split != plain].tolist()


def test_a_disliked_item_is_seen_but_no_part_of_a_history() -> None:
    events = Events(np.zeros(5, np.int64), np.arange(5), np.arange(5), np.array([1, 0, 1, 1, 1], np.float32))
    split = split_numbers(LEAVE_LAST, events)
    assert rows(training_sequences(events, split)) == [[0, 2]]
    found = queries(events, split, "test", history=9, repeats=False)
    assert found.target.tolist() == [4]
    assert rows(found.histories) == [[0, 2, 3]]
    assert rows(found.seen) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("repeats", [True, False])
def test_an_item_that_was_met_before_is_asked_for_only_among_repeats(repeats: bool) -> None:
    events = Events(np.zeros(4, np.int64), np.array([0, 1, 2, 0]), np.arange(4), np.ones(4, np.float32))
    found = queries(events, split_numbers(LEAVE_LAST, events), "test", history=9, repeats=repeats)
    assert found.target.tolist() == [0] * repeats
    assert found.user.shape == (int(repeats),)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("split", [LEAVE_LAST, ONE_MORE, BY_TIME])
def test_partitions_say_the_same_as_the_whole_log(
    tmp_path: Path, split: Split, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rng = RunDir(str(tmp_path)), np.random.default_rng(0)
    ids = [f"item {n}" for n in range(12)]
    run.write_table(pa.table({"item_id": ids, "embedding": matrix_column(np.zeros((12, 2), np.float32))}), "embeddings")
    given = pa.table(
        {
            "user_id": [f"user {n}" for n in rng.integers(0, 25, 400)],
            "item_id": [ids[n] for n in rng.integers(0, 12, 400)],
            "timestamp": pa.array(rng.integers(0, 200, 400), pa.timestamp("us", "UTC")),
            "label": rng.integers(0, 2, 400).astype(np.float32),
        }
    )
    given = given.group_by(given.column_names).aggregate([])  # no event stands twice
    found, made = [], list[int]()

    def counted(*args: Any, rows: np.ndarray, **options: Any) -> Queries:
        made.append(len(rows))
        return queries(*args, rows=rows, **options)

    monkeypatch.setattr(sequences, "queries", counted)
    for number in (1, 2, 7):
        write_log(run, given, partitions=number)
        log = open_log(run)
        asked = partial(read_queries, log, split, "test", history=5, repeats=repeats)
        every, some, other = asked(most=10_000, seed=0), asked(most=4, seed=0), asked(most=4, seed=1)
        assert len(some.target) == min(4, len(every.target))
        assert listed_queries(some) == listed_queries(every.first(4))
        made.clear()
        assert listed_queries(asked(most=4, seed=0)) == listed_queries(some)
        assert max(made) <= 4  # no list is made of what cannot be kept
        assert sum(made) <= 4 * sum(1 / place for place in range(1, number + 1)) + 4
        assert len(every.target) < 5 or sorted(listed_queries(some)) != sorted(listed_queries(other))
        training = read_training(log, split)
        found.append((listed_queries(every), training.positives.tolist(), training.warm.tolist()))
    assert found[0] == found[1] == found[2]
    whole = encode(given, item_ids(run)).events
    numbers = split_numbers(split, whole)
    assert found[0][1] == np.bincount(training_sequences(whole, numbers).values, minlength=12).tolist()
    wanted = queries(whole, numbers, "test", history=5, repeats=repeats)
    assert sorted(rows(wanted.histories)) == sorted(query[2] for query in found[0][0])


def listed_queries(asked: Queries) -> list[tuple[int, int, list[int], list[int], int]]:
    assert asked.time is not None
    columns = (asked.user.tolist(), asked.time.tolist(), rows(asked.histories), rows(asked.seen), asked.target.tolist())
    return list(zip(*columns, strict=True))
