from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from operators.gate import CACHED_ONLY, NO_MEDIA, NOT_WORTH_IT, OPEN, GateRule, activity, decide
from storage.hashing import hash_ids

START = datetime(2024, 1, 1, tzinfo=UTC)
MEDIUM = {"uri": "a.jpg", "kind": "image"}
RULES = st.builds(
    GateRule,
    has_media=st.booleans(),
    thin_below=st.none() | st.integers(0, 12),
    popular_from=st.none() | st.integers(0, 4),
    new_within_days=st.none() | st.integers(0, 6).map(float),
    budget=st.none() | st.integers(0, 12),
)


@st.composite
def catalogues(draw):
    """Items, events as (item, day), and the items known before."""
    texts = st.none() | st.text("ab é", max_size=8)
    media = st.sampled_from([None, [], [MEDIUM], [MEDIUM], [MEDIUM, MEDIUM]])
    rows = draw(st.lists(st.tuples(texts, texts, media), max_size=12))
    ids = [f"item-{number}" for number in range(len(rows))]
    names = st.sampled_from([*ids, "gone"])
    events = draw(st.lists(st.tuples(names, st.integers(0, 8)), max_size=30))
    return items_table(ids, rows), events, draw(st.sets(names))


def items_table(ids, rows):
    titles, descriptions, media = zip(*rows, strict=True) if rows else ((), (), ())
    kind = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
    return pa.table(
        {
            "item_id": pa.array(ids, pa.string()),
            "title": pa.array(titles, pa.string()),
            "description": pa.array(descriptions, pa.string()),
            "media": pa.array(media, kind),
        }
    )


def log(events):
    """The events in two parts."""
    times = [START + timedelta(days=day) for _, day in events]
    table = pl.DataFrame({"item": hash_ids(item for item, _ in events)}, schema={"item": pl.Int64})
    table = table.with_columns(timestamp=pl.Series(times, dtype=pl.Datetime("us", "UTC")))
    return [table[::2], table[1::2]]


def worth(item, rule, events):
    """The rule, word by word."""
    if rule.has_media and not item["media"]:
        return NO_MEDIA
    days = [day for name, day in events if name == item["item_id"]]
    conditions = []
    if rule.thin_below is not None:
        text = [(item[column] or "").strip() for column in ("title", "description")]
        conditions.append(len(text[0]) + len(text[1]) < rule.thin_below)
    if rule.popular_from is not None:
        conditions.append(len(days) >= rule.popular_from)
    if rule.new_within_days is not None:
        conditions.append(not days or max(day for _, day in events) - min(days) <= rule.new_within_days)
    return OPEN if any(conditions) or not conditions else NOT_WORTH_IT


@given(catalogues(), RULES)
def test_the_gate_is_the_rule_within_its_budget(catalogue, rule):
    items, events, known = catalogue
    gates = decide([items], rule, activity(log(events)), known).to_pylist()
    ideal = [worth(item, rule, events) for item in items.to_pylist()]
    wanting = ideal.count(OPEN)

    assert [OPEN if gate == CACHED_ONLY else gate for gate in gates] == ideal
    assert gates.count(OPEN) == (wanting if rule.budget is None else min(wanting, rule.budget))


@given(catalogues(), RULES)
def test_a_known_item_takes_no_budget_from_another(catalogue, rule):
    items, events, known = catalogue
    ids, seen = items["item_id"].to_pylist(), activity(log(events))
    gates = dict(zip(ids, decide([items], rule, seen, known).to_pylist(), strict=True))
    strangers = items.filter(pa.array([item not in known for item in ids], pa.bool_()))
    alone = decide([strangers], rule, seen).to_pylist()
    assert [gates[item] for item in strangers["item_id"].to_pylist()] == alone


def test_a_stranger_comes_before_the_most_popular_known_item():
    items = items_table(["popular", "stranger"], [("t", None, [MEDIUM])] * 2)
    seen = activity(log([("popular", 0), ("popular", 1)]))
    assert decide([items], GateRule(budget=1), seen).to_pylist() == [OPEN, CACHED_ONLY]
    assert decide([items], GateRule(budget=1), seen, {"popular"}).to_pylist() == [CACHED_ONLY, OPEN]


@given(catalogues(), RULES, st.integers(0, 12), st.integers(0, 5))
def test_more_budget_closes_no_item(catalogue, rule, budget, more):
    items, events, known = catalogue
    seen = activity(log(events))
    less = decide([items], replace(rule, budget=budget), seen, known).to_pylist()
    greater = decide([items], replace(rule, budget=budget + more), seen, known).to_pylist()
    assert all(after == OPEN for before, after in zip(less, greater, strict=True) if before == OPEN)


@given(catalogues(), RULES, st.randoms(use_true_random=False))
def test_the_gate_does_not_depend_on_the_order_of_rows(catalogue, rule, random):
    items, events, known = catalogue
    seen = activity(log(events))
    order = random.sample(range(items.num_rows), items.num_rows)
    shuffled_seen = seen.sample(fraction=1.0, shuffle=True, seed=random.randrange(100))
    gates = np.array(decide([items], rule, seen, known).to_pylist(), object)
    shuffled = items.take(pa.array(order, pa.int64()))
    assert decide([shuffled], rule, shuffled_seen, known).to_pylist() == gates[order].tolist()


def test_what_was_seen_is_joined_once_whatever_the_number_of_parts(monkeypatch):
    items = items_table([f"item-{n}" for n in range(9)], [("t", None, [MEDIUM] * (n % 2)) for n in range(9)])
    seen, rule = activity(log([("item-3", 0), ("item-4", 1)])), GateRule(popular_from=1)
    whole, join, joined = decide([items], rule, seen), pl.DataFrame.join, []
    monkeypatch.setattr(pl.DataFrame, "join", lambda *args, **options: joined.append(args) or join(*args, **options))
    assert decide((items.slice(start, 2) for start in range(0, 9, 2)), rule, seen).equals(whole)
    assert len(joined) == 1


def test_budget_goes_to_the_popular_then_to_the_new():
    rows = [("t", None, [MEDIUM])] * 4
    items = items_table(["old", "popular", "new", "unseen"], rows)
    seen = activity(log([("old", 0), ("popular", 1), ("popular", 2), ("new", 5)]))
    opened = {
        budget: {
            item
            for item, gate in zip(
                items["item_id"].to_pylist(), decide([items], GateRule(budget=budget), seen).to_pylist(), strict=True
            )
            if gate == OPEN
        }
        for budget in (1, 2, 3)
    }
    assert opened == {1: {"popular"}, 2: {"popular", "new"}, 3: {"popular", "new", "old"}}


def test_equals_are_not_served_in_the_order_of_their_names():
    ids = [f"item-{number:03d}" for number in range(100)]
    items = items_table(ids, [("t", None, [MEDIUM])] * 100)
    gates = decide([items], GateRule(budget=50)).to_pylist()
    assert 10 < gates[:50].count(OPEN) < 40


def test_without_a_log_every_item_is_new_and_none_popular():
    items = items_table(["a", "b"], [("a long title", None, [MEDIUM]), ("t", None, [MEDIUM])])
    assert decide([items], GateRule(new_within_days=0.0)).to_pylist() == [OPEN, OPEN]
    assert decide([items], GateRule(popular_from=1)).to_pylist() == [NOT_WORTH_IT, NOT_WORTH_IT]
    assert decide([items], GateRule(popular_from=1, thin_below=5)).to_pylist() == [NOT_WORTH_IT, OPEN]


def test_age_is_counted_to_the_end_of_the_log():
    seen = activity(log([("a", 3), ("a", 1), ("b", 8), ("b", 8)]))
    a, b = hash_ids("ab").tolist()
    assert sorted(seen.to_dicts(), key=lambda row: row["item"] == b) == [
        {"item": a, "events": 2, "age_days": 7.0},
        {"item": b, "events": 2, "age_days": 0.0},
    ]
