from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.log import split
from operators.log.events import HELD_BACK, Events
from operators.log.split import SplitLeaveLast, SplitTime, quantile, ranges, split_numbers
from storage.errors import UserError

TIMES = st.lists(st.integers(-50, 10**15), min_size=1, max_size=60)
SIZES = st.integers(1, 4)


def at(times: list[int] | np.ndarray) -> Events:
    time = np.asarray(times, np.int64)
    return Events(np.zeros_like(time), np.zeros_like(time), time, np.ones(len(time), np.float32))


def in_parts(times: list[int], parts: int) -> list[Events]:
    return [at(times[number::parts]) for number in range(parts)]


@given(TIMES, SIZES, st.floats(0, 1), st.sampled_from([(1 << 20, 4096), (4, 3), (1, 2)]))
def test_a_quantile_is_that_of_all_parts_however_few_times_are_held(
    times: list[int], parts: int, share: float, held: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(split, "HELD", held[0])
        patched.setattr(split, "BINS", held[1])
        found = quantile(lambda: in_parts(times, parts), len(times), share)
    assert found == np.quantile(np.array(times), share, method="nearest")


@given(TIMES, SIZES, st.integers(1, 9))
def test_ranges_are_in_order_and_about_equally_full(times: list[int], parts: int, number: int) -> None:
    cuts = ranges(lambda: in_parts(times, parts), min(times), max(times), number)
    assert len(cuts) == number - 1
    assert (np.diff(cuts) >= 0).all()
    held = np.bincount(np.searchsorted(cuts, times, side="right"), minlength=number)
    most = max(times.count(time) for time in times)
    width = -(-(max(times) - min(times) + 1) // (split.BINS * number))
    crowded = max(sum(start <= time < start + width for time in times) for start in times)
    assert held.max() <= len(times) / number + max(most, crowded) + 1


def test_a_split_by_time_keeps_order_and_shares() -> None:
    time = np.random.default_rng(0).integers(0, 10_000, 2000)
    number = split_numbers(SplitTime(valid=0.1, test=0.2), at(time))
    assert time[number == 0].max() < time[number == 1].min()
    assert time[number == 1].max() < time[number == 2].min()
    np.testing.assert_allclose(np.bincount(number) / 2000, [0.7, 0.1, 0.2], atol=0.01)


def test_a_split_by_time_needs_moments() -> None:
    with pytest.raises(UserError, match="leave_last"):
        split_numbers(SplitTime(valid=0.1, test=0.1), at(np.repeat([1, 2], 50)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40), st.sampled_from([1, 2]))
def test_leave_last_holds_out_the_two_last_events_and_holds_one_more_back(
    rows: list[tuple[int, int]], held_back: Literal[1, 2]
) -> None:
    user, time = np.array(sorted(rows, key=lambda row: row[1])).T
    log = Events(user, user, time, np.ones(len(user)))
    leave_last = SplitLeaveLast(kind="leave_last", held_back=held_back)
    if np.bincount(log.user).max() < 3:
        with pytest.raises(UserError):
            split_numbers(leave_last, log)
        return
    number = split_numbers(leave_last, log)
    for one in range(4):
        mine = number[log.user == one].tolist()
        last = [[0], [HELD_BACK]][held_back - 1] + [1, 2]
        assert mine == ([0] * (len(mine) - 3) + last if len(mine) >= 3 else [0] * len(mine))


def test_one_event_is_held_back_by_default_or_two() -> None:
    assert SplitLeaveLast(kind="leave_last").held_back == 1
    with pytest.raises(ValueError, match="held_back"):
        SplitLeaveLast.model_validate({"kind": "leave_last", "held_back": 3})
