from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from operators.log.events import (
    DAY_US,
    RATE_PRIOR,
    Events,
    counts,
    first_interactions,
    histories,
    known_before,
    known_before_each,
    last_histories,
    not_met,
    own_histories,
)

USERS, ITEMS = 4, 6
LOGS = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(0, 9), st.booleans()),
    min_size=1,
    max_size=40,
)  # few moments, so that ties abound


def events(rows: list[tuple[int, int, int, bool]]) -> Events:
    user, item, time, label = (np.array(column) for column in zip(*sorted(rows, key=lambda r: r[2]), strict=True))
    return Events(user, item, time.astype(np.int64) * DAY_US, label.astype(np.float32))


@given(LOGS, st.integers(1, 5))
def test_histories_equal_a_loop(rows: list[tuple[int, int, int, bool]], length: int) -> None:
    log = events(rows)
    values, offsets = histories(log, log.user, log.time, length=length)
    for query in range(len(log)):
        past = [
            log.item[e]
            for e in range(len(log))
            if log.user[e] == log.user[query] and log.time[e] < log.time[query] and log.label[e]
        ]
        assert values[offsets[query] : offsets[query + 1]].tolist() == past[-length:]


@given(LOGS)
def test_counts_equal_a_loop(rows: list[tuple[int, int, int, bool]]) -> None:
    log = events(rows)
    found = counts(log, log.item, log.user, log.time, rates=True)
    for query in range(len(log)):
        past = log.time < log.time[query]
        rate = (log.label[past].sum() + 1) / (past.sum() + 2)
        expected = {}
        for name, mine in (("item", log.item == log.item[query]), ("user", log.user == log.user[query])):
            known = past & mine
            expected[f"{name}_events"] = np.log1p(known.sum())
            expected[f"{name}_rate"] = (log.label[known].sum() + RATE_PRIOR * rate) / (known.sum() + RATE_PRIOR)
            if name == "item":
                expected["item_share"] = np.log((known.sum() + 1) / (past.sum() + 1))
                age = (log.time[query] - log.time[known].min()) / DAY_US if known.any() else None
                expected["item_age"] = -1 if age is None else np.log1p(age)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name][query] == pytest.approx(value, abs=1e-5), name


def known_at(rows: list[tuple[int, int, int, bool]], now: int) -> list[np.ndarray]:
    """All that is said of every user and item at one moment."""
    log = events(rows)
    user, item = np.repeat(np.arange(USERS), ITEMS), np.tile(np.arange(ITEMS), USERS)
    time = np.full(len(user), now * DAY_US)
    drawn = np.tile(np.arange(ITEMS), (len(user), 1))
    negatives, *source = not_met(Events(user, item, time, np.ones(len(user))), drawn, log, ratio=2)
    return [
        *histories(log, user, time, length=3),
        *counts(log, item, user, time, rates=True).values(),
        negatives.item,
        *source,
    ]


@settings(max_examples=40)
@given(LOGS, st.integers(0, 9), st.data())
def test_the_future_changes_no_feature(rows: list[tuple[int, int, int, bool]], now: int, data: st.DataObject) -> None:
    past = [row for row in rows if row[2] <= now]
    assume(past)
    future = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(now + 1, 20), st.booleans()))
    )
    for with_future, without in zip(known_at(past + future, now), known_at(past, now), strict=True):
        np.testing.assert_array_equal(with_future, without)


@given(LOGS, st.integers(0, 3), st.integers(1, 3))
def test_negatives_are_the_first_draws_that_were_new_to_the_user(
    rows: list[tuple[int, int, int, bool]], seed: int, ratio: int
) -> None:
    log = events(rows)
    drawn = np.random.default_rng(seed).integers(0, ITEMS, (len(log), 5))
    negatives, source, column = not_met(log, drawn, log, ratio=ratio)
    assert (negatives.label == 0).all()
    found = [[] for _ in range(len(log))]
    for row, at in zip(source, column, strict=True):
        found[row].append(at)
    for row in range(len(log)):
        met = {log.item[e] for e in range(len(log)) if log.user[e] == log.user[row] and log.time[e] <= log.time[row]}
        assert found[row] == [at for at, item in enumerate(drawn[row]) if item not in met][:ratio]
    np.testing.assert_array_equal(negatives.item, drawn[source, column])
    np.testing.assert_array_equal(negatives.user, log.user[source])
    np.testing.assert_array_equal(negatives.time, log.time[source])


@given(LOGS)
def test_first_interactions_are_one_per_pair_and_earliest(rows: list[tuple[int, int, int, bool]]) -> None:
    log = events(rows)
    mask = first_interactions(log)
    pairs = list(zip(log.user, log.item, strict=True))
    assert sorted(set(pairs)) == sorted(pair for pair, first in zip(pairs, mask, strict=True) if first)
    for row in np.flatnonzero(mask):
        same = [other for other in range(len(log)) if pairs[other] == pairs[row]]
        assert row == min(same, key=lambda other: (log.time[other], other))


@given(LOGS, st.integers(1, 5))
def test_what_is_known_before_each_event_is_what_is_known_before_its_moment(
    rows: list[tuple[int, int, int, bool]], length: int
) -> None:
    log = events(rows)
    for entity in (log.user, log.item, np.zeros_like(log.user)):
        found, wanted = known_before_each(log, entity), known_before(log, entity, entity, log.time)
        np.testing.assert_array_equal(found.events, wanted.events)
        np.testing.assert_array_equal(found.positives, wanted.positives)
        there = wanted.events > 0
        np.testing.assert_array_equal(found.first[there], wanted.first[there])
    some = np.arange(0, len(log), 2)
    for values, others in zip(
        own_histories(log, some, length=length),
        histories(log, log.user[some], log.time[some], length=length),
        strict=True,
    ):
        np.testing.assert_array_equal(values, others)


@given(LOGS, st.integers(1, 5))
def test_what_users_chose_last_is_what_was_known_after_the_last_event(
    rows: list[tuple[int, int, int, bool]], length: int
) -> None:
    log, users = events(rows), np.arange(USERS)
    end = np.full(USERS, log.time.max() + 1)
    for kept, given_length in ((length, length), (len(log), None)):
        found, wanted = last_histories(log, USERS, length=given_length), histories(log, users, end, length=kept)
        np.testing.assert_array_equal(found[0].item, wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])
        assert all((np.diff(found[0].time[a:b]) >= 0).all() for a, b in itertools.pairwise(found[1]))
