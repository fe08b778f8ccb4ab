from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from workflows.catalogs.synthetic import behaviour


@pytest.fixture(scope="module")
def world() -> tuple[pa.Table, pa.Table, pa.Table]:
    items = behaviour.draw_items([f"i{n}" for n in range(200)], np.random.default_rng([0, 1]))
    users = behaviour.draw_users([f"u{n}" for n in range(300)], np.random.default_rng([0, 2]))
    return users, items, behaviour.draw_impressions(users, items, np.random.default_rng([0, 3]))


def one_pair(**changes: object) -> pa.Table:
    pair = {"user_id": "u3", "item_id": "i5", "timestamp": behaviour.START + dt.timedelta(days=40), "position": 1}
    return pa.Table.from_pylist([{**pair, **changes}])


def test_probability_follows_the_written_formula(world: tuple[pa.Table, pa.Table, pa.Table]) -> None:
    users, items, impressions = world
    sample = impressions.slice(1000, 50)
    by_item = {row["item_id"]: row for row in items.to_pylist()}
    by_user = {row["user_id"]: row for row in users.to_pylist()}
    expected = []
    for row in sample.to_pylist():
        item, taste = by_item[row["item_id"]], by_user[row["user_id"]]
        age = (row["timestamp"] - item["first_seen"]) / dt.timedelta(days=1)
        logit = behaviour.BIAS + sum(taste[f"{name}={item[name]}"] for name in behaviour.ATTRIBUTES)
        logit += behaviour.QUALITY * item["quality"] + behaviour.NOVELTY * np.exp(-age / behaviour.NOVELTY_DAYS)
        logit += behaviour.POSITION * (row["position"] - 1)
        expected.append(1 / (1 + np.exp(-logit)))
    np.testing.assert_allclose(behaviour.click_probability(sample, users, items), expected, atol=1e-6)


def test_probability_does_not_depend_on_other_rows(world: tuple[pa.Table, pa.Table, pa.Table]) -> None:
    users, items, impressions = world
    whole = behaviour.click_probability(impressions, users, items)
    order = np.random.default_rng(0).permutation(impressions.num_rows)[:500]
    part = behaviour.click_probability(impressions.take(pa.array(order)), users, items)
    np.testing.assert_array_equal(part, whole[order])


def test_lower_positions_get_fewer_clicks(world: tuple[pa.Table, pa.Table, pa.Table]) -> None:
    users, items, _ = world
    first, last = (behaviour.click_probability(one_pair(position=at), users, items)[0] for at in (1, 8))
    assert last < first


@pytest.mark.parametrize("stranger", [{"user_id": "nobody"}, {"item_id": "nothing"}])
def test_unknown_ids_raise(world: tuple[pa.Table, pa.Table, pa.Table], stranger: dict[str, str]) -> None:
    users, items, _ = world
    with pytest.raises(ValueError, match="1 rows name"):
        behaviour.click_probability(one_pair(**stranger), users, items)


def test_looks_are_balanced_and_independent() -> None:
    items = behaviour.draw_items([f"i{n}" for n in range(4000)], np.random.default_rng(5))
    columns = {}
    for name, values in behaviour.ATTRIBUTES.items():
        columns[name] = np.array([values.index(value) for value in items[name].to_pylist()])
        counts = np.bincount(columns[name], minlength=len(values))
        assert counts.max() - counts.min() <= 1
    columns["quality"], columns["age"] = items["quality"].to_numpy(), items["first_seen"].cast(pa.int64()).to_numpy()
    correlation = np.corrcoef(list(columns.values())) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.06


def test_impressions_respect_time_and_sessions(world: tuple[pa.Table, pa.Table, pa.Table]) -> None:
    users, items, impressions = world
    assert impressions.num_rows == users.num_rows * behaviour.SESSION * behaviour.SESSIONS_PER_USER
    frame = impressions.to_pandas()
    assert set(frame.user_id) == set(users["user_id"].to_pylist())
    assert not frame.duplicated(["user_id", "item_id", "timestamp"]).any()
    seen = frame.merge(items.to_pandas()[["item_id", "first_seen"]], on="item_id")
    assert (seen.timestamp >= seen.first_seen).all(), "nothing is shown before it is listed"
    session = frame.sort_values(["user_id", "timestamp"]).groupby("user_id", sort=False).position
    assert (session.transform(lambda position: position.diff().dropna().isin([1, -7])).astype(bool)).mean() > 0.9


def test_a_session_shows_an_item_once(world: tuple[pa.Table, pa.Table, pa.Table]) -> None:
    frame = world[2].to_pandas().sort_values(["user_id", "timestamp"])
    session = (frame.position == 1).cumsum()
    sizes = session.map(session.value_counts())
    whole = frame[sizes == behaviour.SESSION]  # sessions of one user that do not overlap
    assert len(whole) > 0.95 * len(frame)
    assert not whole.assign(session=session).duplicated(["session", "item_id"]).any()
