from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workflows.catalogs.synthetic import behaviour, visits
from workflows.catalogs.synthetic.behaviour import DAY_US, START_US, World

USERS, ITEMS = 300, 200
Shop = tuple[World, pa.Table, np.ndarray, pd.DataFrame]


@pytest.fixture(scope="module")
def shop() -> Shop:
    items = behaviour.draw_items([f"i{n}" for n in range(ITEMS)], np.random.default_rng([0, 1]))
    users = behaviour.draw_users([f"u{n}" for n in range(USERS)], np.random.default_rng([0, 2]))
    known = behaviour.world(users, items)
    planned = visits.draw_visits(known, np.random.default_rng([0, 3]))
    need = behaviour.need_rows(planned["need"].to_pylist())
    shown = visits.draw_impressions(known, planned, need, np.random.default_rng([0, 4]))
    return known, planned, need, shown.to_pandas()


def test_impressions_respect_time_and_visits(shop: Shop) -> None:
    known, planned, _, shown = shop
    assert planned.num_rows == USERS * visits.VISITS_PER_USER
    assert len(shown) == planned.num_rows * visits.SHOWN
    assert set(shown.user) == set(range(USERS))
    times = pa.array(shown.timestamp).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    assert (times >= known.listed[shown.item]).all(), "nothing is shown before it is listed"
    assert not shown.duplicated(["visit", "item"]).any(), "a visit shows an item once"
    assert not shown.duplicated(["user", "timestamp"]).any(), "a moment of a user tells the visit"
    of_user = shown.sort_values(["user", "timestamp"])
    assert of_user.position.tolist() == list(range(1, visits.SHOWN + 1)) * planned.num_rows, "visits do not overlap"


def test_needs_follow_tastes_and_are_taken_up_again(shop: Shop) -> None:
    known, planned, need, _ = shop
    frame = planned.to_pandas().assign(need=need).sort_values(["user", "start"])
    assert 0.7 < (frame.need >= 0).mean() < 0.9
    gap = frame.start.groupby(frame.user).diff()
    same = frame.need == frame.need.groupby(frame.user).shift()
    soon, late = same[gap.dt.days < visits.TAKEN_UP_DAYS], same[gap.dt.days > visits.TAKEN_UP_DAYS]
    assert soon.mean() > late.mean() + 0.3
    needed = frame[frame.need >= 0]
    categories = len(behaviour.ATTRIBUTES["category"])
    mean = known.taste[needed.user, :categories].mean()
    assert known.taste[needed.user, needed.need].mean() > mean + 0.1


def test_what_is_shown_is_the_written_mixture(shop: Shop) -> None:
    known, _, _, _ = shop
    user, day, need = np.array([3, 4]), np.array([40, 80]), np.array([2, -1])
    found = visits.shown_chance(known, user, day, need)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for row in range(2):
        age = day[row] - (known.listed - START_US) / DAY_US
        listed = age >= 0
        appeal = np.exp(known.appeal + visits.NEW * np.exp(-age.clip(0) / behaviour.NOVELTY_DAYS)) * listed
        browsed = appeal * (known.look[:, 0] == need[row]) if need[row] >= 0 else appeal
        personal = np.sqrt(appeal) * np.exp([known.model[user[row], look].sum() for look in known.look])
        parts = (visits.BROWSED, browsed), (visits.POPULAR, appeal), (visits.PERSONAL, personal)
        expected = sum(share * part / part.sum() for share, part in parts) + visits.EXPLORED * listed / listed.sum()
        np.testing.assert_allclose(found[row], expected)
    assert pytest.approx(1) == visits.BROWSED + visits.POPULAR + visits.PERSONAL + visits.EXPLORED


def test_propensities_are_the_chances_of_what_was_left(shop: Shop) -> None:
    known, planned, need, shown = shop
    start = planned["start"].cast(pa.int64()).to_numpy()
    for visit, rows in list(shown.groupby("visit"))[::100]:
        user = planned["user"].to_numpy()[[visit]]
        chance = visits.shown_chance(known, user, (start[[visit]] - START_US) // DAY_US, need[[visit]])[0]
        before = 0.0
        for item, propensity in zip(rows.item, rows.propensity, strict=True):
            assert propensity == pytest.approx(chance[item] / (1 - before), abs=1e-6)
            before += chance[item]


def test_items_are_shown_as_often_as_their_propensities_say(shop: Shop) -> None:
    """Weighted by one over its propensity, what is shown first is every listed item alike."""
    _, planned, _, shown = shop
    first = shown[shown.position == 1]
    assert (1 / first.propensity).mean() == pytest.approx(ITEMS * 0.78, rel=0.2)  # listed on an average day
    assert len(first) == planned.num_rows
