from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.features import long_history
from operators.features.long_history import COUNTED, LISTED, described, shared_prefixes
from operators.log.events import Events

USERS, ITEMS, LEVELS = 3, 8, 3
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1], [2, 0, 0]])
# Equal codes of different levels are different prefixes, as their hashes are.
PREFIXES = np.stack([CODES[:, : level + 1] @ 10 ** np.arange(level + 1) + 1000 * level for level in range(LEVELS)], 1)
LOGS = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(0, 5), st.booleans()), max_size=40
)  # few moments, so that ties abound


def events(rows: list[tuple[int, int, int, bool]]) -> Events:
    columns = np.array(sorted(rows, key=lambda row: (row[0], row[2])), np.int64).reshape(-1, 4).T
    return Events(*columns[:3], columns[3].astype(np.float32))


def by_a_loop(log: Events, user: int, item: int, time: int, length: int) -> tuple[list[int], list[int]]:
    """Counts by level, and the items of the second history, the nearest last."""
    counts, found = [0] * LEVELS, []
    for place in range(len(log)):
        if log.user[place] == user and log.time[place] < time and log.label[place]:
            same = CODES[log.item[place]] == CODES[item]
            level = int(np.cumprod(same).sum())
            counts = [count + (number < level) for number, count in enumerate(counts)]
            if level:
                found.append((level, log.time[place], place))
    return counts, [int(log.item[place]) for _, _, place in sorted(found)[-length:]]


@given(LOGS, LOGS, st.integers(1, 6), st.integers(1, 9))
def test_it_equals_a_loop_whatever_the_blocks(rows: list, queries: list, length: int, block: int) -> None:
    log, asked = events(rows), events(queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_history, "BLOCK", block)
        found = shared_prefixes(log, PREFIXES, asked.user, asked.item, asked.time, length=length)
    assert found.counts.shape == (len(asked), LEVELS)
    assert found.offsets[-1] == len(found.items)
    for query in range(len(asked)):
        counts, items = by_a_loop(log, asked.user[query], asked.item[query], asked.time[query], length)
        np.testing.assert_allclose(np.expm1(found.counts[query]), counts, atol=1e-4)
        assert found.items[found.offsets[query] : found.offsets[query + 1]].tolist() == items


@given(LOGS, st.integers(0, 5), LOGS)
def test_nothing_of_the_moment_or_later_counts(rows: list, now: int, later: list) -> None:
    past = [row for row in rows if row[2] < now]
    with_later = [*past, *((user, item, now + time, label) for user, item, time, label in later)]
    users, items = np.repeat(np.arange(USERS), ITEMS), np.tile(np.arange(ITEMS), USERS)
    asked = (users, items, np.full(len(users), now))
    found, wanted = (shared_prefixes(events(each), PREFIXES, *asked, length=3) for each in (with_later, past))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@given(LOGS, st.integers(1, 4))
def test_a_user_gets_alone_what_all_get_together_and_a_stored_history_what_the_log_gives(
    rows: list, length: int
) -> None:
    log = events(rows)
    items = np.arange(ITEMS)
    end = np.full(ITEMS, 6)
    for user in range(USERS):
        asked = (np.full(ITEMS, user), items, end)
        whole = shared_prefixes(log, PREFIXES, *asked, length=length)
        mine = log.take(log.user == user)
        liked = mine.take(mine.label > 0)
        stored = replace(liked, time=np.arange(len(liked)), user=np.zeros_like(liked.user))
        alone = shared_prefixes(mine, PREFIXES, *asked, length=length)
        served = shared_prefixes(stored, PREFIXES, np.zeros(ITEMS, np.int64), items, end + len(liked), length=length)
        for each in zip(whole, alone, served, strict=True):
            np.testing.assert_array_equal(each[0], each[1])
            np.testing.assert_array_equal(each[0], each[2])


def test_columns_and_what_the_spec_says_of_them() -> None:
    log = events([(0, 1, 0, True), (0, 3, 1, True), (0, 4, 2, True)])
    columns = shared_prefixes(log, PREFIXES, *np.array([[0, 1], [2, 7], [9, 9]]), length=2).columns()
    assert columns[LISTED].to_pylist() == [[3, 1], []]
    assert np.expm1(columns[f"{COUNTED}1"]).round().tolist() == [2, 0]
    assert np.expm1(columns[f"{COUNTED}3"]).round().tolist() == [1, 0]
    spec = {"dense": ["age"], "history": 5}
    assert described(spec, levels=3, length=0) == spec
    long = described(spec, levels=LEVELS, length=2)
    assert long == {"dense": ["age", *list(columns)[1:]], "history": 5, LISTED: 2}
    assert described(long, levels=1, length=0) == spec
