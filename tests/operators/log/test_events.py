from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from operators.log.events import (
    DAY_US,
    RATE_PRIOR,
    Events,
    counts,
    draw_negatives,
    first_interactions,
    histories,
    known_items,
)
from operators.log.split import SplitLeaveLast, SplitTime
from storage.errors import UserError

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
    negatives, source = draw_negatives(Events(user, item, time, np.ones(len(user))), log, items=ITEMS, ratio=2, seed=0)
    return [
        *histories(log, user, time, length=3),
        *counts(log, item, user, time, rates=True).values(),
        negatives.item,
        source,
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


@given(LOGS)
def test_an_item_is_known_from_the_moment_after_its_first_event(rows: list[tuple[int, int, int, bool]]) -> None:
    log = events(rows)
    found = known_items(log, log.item, log.time)
    expected = [log.time[log.item == item].min() < time for item, time in zip(log.item, log.time, strict=True)]
    assert found.tolist() == expected


@given(LOGS, st.integers(0, 3))
def test_negatives_existed_and_were_new_to_the_user(rows: list[tuple[int, int, int, bool]], seed: int) -> None:
    log = events(rows)
    negatives, source = draw_negatives(log, log, items=ITEMS, ratio=3, seed=seed)
    assert (negatives.label == 0).all()
    assert (negatives.user == log.user[source]).all()
    assert (negatives.time == log.time[source]).all()
    for user, item, time in zip(negatives.user, negatives.item, negatives.time, strict=True):
        assert (log.time[log.item == item] < time).any()
        assert not ((log.user == user) & (log.item == item) & (log.time <= time)).any()


def test_negatives_mix_popularity_and_chance() -> None:
    rows = [(0, 0, 0, True)] * 80 + [(0, item, 0, True) for item in range(1, 5)] * 5
    log = events(rows)
    queries = Events(*(np.full(20_000, value) for value in (1, 5, DAY_US, 1)))
    negatives, _ = draw_negatives(queries, log, items=ITEMS, ratio=1, seed=0)
    share = np.bincount(negatives.item, minlength=ITEMS) / len(negatives)
    assert share[0] == pytest.approx(0.5 * 0.8 + 0.5 * 0.2, abs=0.02)
    assert share[1] == pytest.approx(0.5 * 0.05 + 0.5 * 0.2, abs=0.02)
    assert share[5] == 0


@given(LOGS)
def test_first_interactions_are_one_per_pair_and_earliest(rows: list[tuple[int, int, int, bool]]) -> None:
    log = events(rows)
    mask = first_interactions(log)
    pairs = list(zip(log.user, log.item, strict=True))
    assert sorted(set(pairs)) == sorted(pair for pair, first in zip(pairs, mask, strict=True) if first)
    for row in np.flatnonzero(mask):
        same = [other for other in range(len(log)) if pairs[other] == pairs[row]]
        assert row == min(same, key=lambda other: (log.time[other], other))


def test_split_by_time_keeps_order_and_shares() -> None:
    time = np.random.default_rng(0).integers(0, 10_000, 2000)
    number = SplitTime(valid=0.1, test=0.2).numbers(Events(time, time, time, time))
    assert time[number == 0].max() < time[number == 1].min()
    assert time[number == 1].max() < time[number == 2].min()
    np.testing.assert_allclose(np.bincount(number) / 2000, [0.7, 0.1, 0.2], atol=0.01)


def test_split_by_time_needs_moments() -> None:
    time = np.repeat([1, 2], 50)
    with pytest.raises(UserError, match="leave_last"):
        SplitTime(valid=0.1, test=0.1).numbers(Events(time, time, time, time))


@given(LOGS)
def test_leave_last_holds_out_the_two_last_events(rows: list[tuple[int, int, int, bool]]) -> None:
    log = events(rows)
    if np.bincount(log.user).max() < 3:
        with pytest.raises(UserError):
            SplitLeaveLast(kind="leave_last").numbers(log)
        return
    number = SplitLeaveLast(kind="leave_last").numbers(log)
    for user in range(USERS):
        mine = number[log.user == user].tolist()
        assert mine == ([0] * (len(mine) - 2) + [1, 2] if len(mine) >= 3 else [0] * len(mine))
