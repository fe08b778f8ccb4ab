"""Intervals of click-through, beside what drawing users again and again gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.runs.rates import difference, rate
from serving.stores.base import Tally

COUNTS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)).map(lambda pair: (pair[0], min(pair))), max_size=30)


def tally(n: np.ndarray, c: np.ndarray) -> Tally:
    return Tally(*map(int, (len(n), n.sum(), c.sum(), n @ n, n @ c, c @ c)))


def drawn(random: np.random.Generator, users: int, mean: float, alike: float) -> Tally:
    """Users with a chance of their own each, which spreads the more, the more alike the answers to one are."""
    spread = 1 / alike - 1
    chance = random.beta(mean * spread, (1 - mean) * spread, users)
    n = 1 + random.poisson(4, users)
    return tally(n, random.binomial(n, chance))


@given(COUNTS)
def test_an_interval_is_around_its_share(counts: list[tuple[int, int]]) -> None:
    n, c = np.array(counts, np.int64).reshape(-1, 2).T
    found = rate(tally(n, c))
    if found is None:
        assert counts == []
        return
    assert found.value == c.sum() / n.sum()
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.low < found.high


def test_users_who_are_all_alike_are_a_binomial() -> None:
    """One answer each: Wilson's interval of 30 of 300, as published tables have it."""
    found = rate(Tally(300, 300, 30, 300, 30, 30))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.0709, abs=1e-3), pytest.approx(0.1392, abs=1e-3))


def test_an_interval_is_as_wide_as_what_drawing_users_again_gives() -> None:
    random = np.random.default_rng(0)
    users = 2_000
    chance, n = random.beta(0.3, 2.7, users), 1 + random.poisson(6, users)
    c = random.binomial(n, chance)
    found = rate(tally(n, c))
    assert found is not None
    rows = random.integers(0, users, (4_000, users))
    low, high = np.quantile(c[rows].sum(1) / n[rows].sum(1), [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))


@pytest.mark.parametrize(("users", "mean", "alike"), [(60, 0.3, 0.01), (200, 0.05, 0.3), (400, 0.5, 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(users: int, mean: float, alike: float) -> None:
    random, held, apart, times = np.random.default_rng(1), 0, 0, 2_000
    for _ in range(times):
        one, other = (rate(drawn(random, users, mean, alike)) for _ in range(2))
        assert one is not None
        assert other is not None
        held += one.low <= mean <= one.high
        gap = difference(one, other)
        assert gap.low <= gap.value <= gap.high
        apart += gap.low <= 0 <= gap.high
    assert 0.92 <= held / times <= 0.98
    assert 0.92 <= apart / times <= 0.98


def test_without_a_click_the_share_is_not_known_to_be_nothing() -> None:
    few, many = rate(Tally(3, 300, 0, 30_000, 0, 0)), rate(Tally(300, 300, 0, 300, 0, 0))
    assert few is not None
    assert many is not None
    assert (few.low, many.low) == pytest.approx((0, 0))
    assert few.high > 0.5 > 0.02 > many.high > 0.005
