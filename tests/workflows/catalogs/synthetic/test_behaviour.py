from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workflows.catalogs.synthetic import behaviour

USERS, ITEMS = 300, 200


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    items = behaviour.draw_items([f"i{n}" for n in range(ITEMS)], np.random.default_rng([0, 1]))
    return behaviour.draw_users([f"u{n}" for n in range(USERS)], np.random.default_rng([0, 2])), items


@pytest.fixture(scope="module")
def pairs() -> pa.Table:
    random, count = np.random.default_rng(0), 400
    times = behaviour.START_US + random.integers(0, behaviour.DAYS * behaviour.DAY_US, count)
    needs = np.array([*behaviour.ATTRIBUTES["category"], None], dtype=object)
    return pa.table(
        {
            "user_id": [f"u{n}" for n in random.integers(0, USERS, count)],
            "item_id": [f"i{n}" for n in random.integers(0, ITEMS, count)],
            "timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
            "position": random.integers(1, 9, count),
            "need": pa.array(needs[random.integers(0, len(needs), count)], pa.string()),
        }
    )


def one_pair(**changes: object) -> pa.Table:
    pair = {"user_id": "u3", "item_id": "i5", "timestamp": behaviour.START + dt.timedelta(days=40), "position": 1}
    return pa.Table.from_pylist([{**pair, **changes}])


def test_probability_follows_the_written_formula(tables: tuple[pa.Table, pa.Table], pairs: pa.Table) -> None:
    users, items = tables
    by_item = {row["item_id"]: row for row in items.to_pylist()}
    by_user = {row["user_id"]: row for row in users.to_pylist()}
    expected = []
    for row in pairs.to_pylist():
        item, user = by_item[row["item_id"]], by_user[row["user_id"]]
        age = max((row["timestamp"] - item["first_seen"]) / dt.timedelta(days=1), 0)
        passed = (row["timestamp"] - behaviour.START) / dt.timedelta(days=behaviour.DAYS)
        logit = behaviour.BIAS
        for name in (f"{attribute}={item[attribute]}" for attribute in behaviour.ATTRIBUTES):
            logit += (1 - passed) * user[name] + passed * user[behaviour.LATER + name]
        if row["need"] is not None:
            logit += behaviour.NEEDED if row["need"] == item["category"] else behaviour.OTHER
        logit += behaviour.QUALITY * item["quality"] + behaviour.NOVELTY * np.exp(-age / behaviour.NOVELTY_DAYS)
        logit += behaviour.POSITION * (row["position"] - 1)
        expected.append(1 / (1 + np.exp(-logit)))
    np.testing.assert_allclose(behaviour.click_probability(pairs, users, items), expected, atol=1e-6)


def test_probability_does_not_depend_on_other_rows(tables: tuple[pa.Table, pa.Table], pairs: pa.Table) -> None:
    whole = behaviour.click_probability(pairs, *tables)
    order = np.random.default_rng(0).permutation(pairs.num_rows)[:100]
    np.testing.assert_array_equal(behaviour.click_probability(pairs.take(pa.array(order)), *tables), whole[order])


def test_who_says_no_need_has_none(tables: tuple[pa.Table, pa.Table], pairs: pa.Table) -> None:
    none = pairs.set_column(4, "need", pa.nulls(pairs.num_rows, pa.string()))
    silent = behaviour.click_probability(pairs.drop_columns(["need"]), *tables)
    np.testing.assert_array_equal(silent, behaviour.click_probability(none, *tables))


def test_lower_positions_get_fewer_clicks(tables: tuple[pa.Table, pa.Table]) -> None:
    first, last = (behaviour.click_probability(one_pair(position=at), *tables)[0] for at in (1, 8))
    assert last < first


@pytest.mark.parametrize("stranger", [{"user_id": "nobody"}, {"item_id": "nothing"}])
def test_unknown_ids_raise(tables: tuple[pa.Table, pa.Table], stranger: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="1 rows name"):
        behaviour.click_probability(one_pair(**stranger), *tables)


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
    assert 0.3 < np.corrcoef(items["quality"].to_numpy(), items["appeal"].to_numpy())[0, 1] < 0.5


def test_tastes_drift_and_an_old_model_knows_where_they_began(tables: tuple[pa.Table, pa.Table]) -> None:
    known = behaviour.world(*tables)
    assert 0.3 < known.drift.std() / known.taste.std() < 0.6
    assert 0.5 < np.corrcoef(known.model.ravel(), known.taste.ravel())[0, 1] < 0.95


def test_new_items_come_once_a_week(tables: tuple[pa.Table, pa.Table]) -> None:
    days = (tables[1]["first_seen"].to_pandas() - pd.Timestamp(behaviour.START)).dt.days
    new = days[days > 0]
    assert set(new % behaviour.WEEK) == {0}
    assert len(set(new)) == 12
