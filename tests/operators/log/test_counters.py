"""Ranges of time say the same as the whole log would, in whatever order their rows come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.log.counters import State, answer, draw, tally
from operators.log.events import Events, Known, all_before, known_before
from storage.hashing import hash_numbers

ITEMS = 6
EVENTS = st.lists(
    st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 9), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40
)  # few moments, so that ties abound
CUTS = st.lists(st.integers(1, 9), max_size=4).map(sorted)


def table(rows: list[tuple[int, int, bool, int]], *, by_time: bool) -> pa.Table:
    item, time, positive, split = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    split = np.searchsorted([4, 7], time, side="right") if by_time else split
    return pa.table(
        {
            "item": item.astype(np.int32),
            "time": time,
            "positive": positive.astype(np.int8),
            "split": split.astype(np.int8),
            "key": hash_numbers(np.arange(len(item)), item, time, seed=3),
        }
    )


def answered(rows: pa.Table, cuts: list[int], *, splits: int, draws: int = 0) -> tuple[pa.Table, State]:
    """All answers, in the order of the rows, and the state at the end."""
    state = State.empty(ITEMS, splits)
    number = np.searchsorted(cuts, rows["time"].to_numpy(), side="right")
    answers, order = [], []
    for one in range(len(cuts) + 1):
        mine = np.flatnonzero(number == one)
        part = rows.take(pa.array(mine))
        answers.append(answer(part, State.from_arrow(state.to_arrow()), draws=draws))
        state.add(tally(part, splits))
        order.append(mine)
    return pa.concat_tables(answers).take(pa.array(np.argsort(np.concatenate(order), kind="stable"))), state


@given(EVENTS, CUTS, st.booleans())
def test_a_range_answers_as_the_whole_log_would(
    rows: list[tuple[int, int, bool, int]], cuts: list[int], by_time: bool
) -> None:
    given_rows = table(rows, by_time=by_time)
    found, end = answered(given_rows, cuts, splits=1 if by_time else 3)
    item, time, split = (given_rows[name].to_numpy().astype(np.int64) for name in ("item", "time", "split"))
    log = Events(np.zeros_like(item), item, time, given_rows["positive"].to_numpy().astype(np.float32))
    for number in range(3):
        known, asked = log.take(split <= number), split == number
        wanted, total = known_before(known, known.item, item[asked], time[asked]), all_before(known, time[asked])
        there = wanted.events > 0
        np.testing.assert_array_equal(found["events"].to_numpy()[asked], wanted.events)
        np.testing.assert_array_equal(found["positives"].to_numpy()[asked], wanted.positives)
        np.testing.assert_array_equal(found["first"].to_numpy()[asked][there], wanted.first[there])
        np.testing.assert_array_equal(found["total_events"].to_numpy()[asked], total.events)
        np.testing.assert_array_equal(found["total_positives"].to_numpy()[asked], total.positives)
    np.testing.assert_array_equal(end.items[-1].events, np.bincount(item, minlength=ITEMS))


@given(EVENTS, CUTS, st.randoms(use_true_random=False))
def test_draws_existed_before_and_depend_on_no_order(rows, cuts: list[int], random) -> None:
    given_rows = table(rows, by_time=True)
    found, _ = answered(given_rows, cuts, splits=1, draws=5)
    drawn = found["drawn"].combine_chunks().flatten().to_numpy().reshape(-1, 5)
    events = found["drawn_events"].combine_chunks().flatten().to_numpy().reshape(-1, 5)
    item, time = given_rows["item"].to_numpy(), given_rows["time"].to_numpy()
    for row, total in enumerate(found["total_events"].to_pylist()):
        for column in range(5):
            before = (item == drawn[row, column]) & (time < time[row])
            assert events[row, column] == before.sum()
            assert before.any() or not total
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled, _ = answered(given_rows.take(pa.array(order)), cuts, splits=1, draws=5)
    assert shuffled.equals(found.take(pa.array(order)))


@settings(max_examples=5)
@given(st.integers(0, 100))
def test_draws_mix_popularity_and_chance_over_what_came_before_the_range_and_in_it(seed: int) -> None:
    item = np.array([0] * 40 + list(range(1, 5)) * 5 + [0] * 40)
    log = Events(np.zeros_like(item), item, np.ones(len(item), np.int64), np.ones(len(item), np.float32))
    early, late = log.take(np.arange(100) < 50), log.take(np.arange(100) >= 50)
    counts = np.bincount(early.item, minlength=ITEMS)
    before = Known(counts, counts, np.where(counts > 0, 0, np.iinfo(np.int64).max))
    queries = np.arange(20_000)
    keys = hash_numbers(queries, queries, queries, seed=seed)
    drawn = draw(keys, np.full(20_000, 2), late, before, draws=1)
    share = np.bincount(drawn.ravel(), minlength=ITEMS) / len(drawn)
    assert share[0] == pytest.approx(0.5 * 0.8 + 0.5 * 0.2, abs=0.02)
    assert share[1] == pytest.approx(0.5 * 0.05 + 0.5 * 0.2, abs=0.02)
    assert share[5] == 0
