from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation import bootstrap
from models.evaluation import lists as metrics
from models.evaluation.bootstrap import bootstrap_means

ITEMS = 8
COUNTS = st.lists(st.integers(0, 9), min_size=ITEMS, max_size=ITEMS)


@st.composite
def queries(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists without duplicates, some of them short, the targets, and the users."""
    count, width = draw(st.integers(1, 12)), draw(st.integers(1, ITEMS))
    rows = []
    for _ in range(count):
        items = draw(st.permutations(range(ITEMS)))[: draw(st.integers(0, width))]
        rows.append([*items, *[-1] * (width - len(items))])
    targets = draw(st.lists(st.integers(0, ITEMS - 1), min_size=count, max_size=count))
    users = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return np.array(rows), np.array(targets), np.array(users)


def brute_ndcg(items: list[int], target: int, at: int) -> float:
    return sum(1 / math.log2(place + 2) for place, item in enumerate(items[:at]) if item == target)


@given(queries(), st.integers(1, ITEMS + 2))
def test_recall_and_ndcg_equal_brute_force(asked, at):
    items, target, _ = asked
    rank = metrics.ranks(items, target)
    pairs = [(row.tolist(), int(wanted)) for row, wanted in zip(items, target, strict=True)]
    assert metrics.recall(rank, at).tolist() == [float(wanted in row[:at]) for row, wanted in pairs]
    np.testing.assert_allclose(metrics.ndcg(rank, at), [brute_ndcg(row, wanted, at) for row, wanted in pairs])


@given(queries(), COUNTS)
def test_coverage_and_popularity_bias_equal_brute_force(asked, counts):
    items, target, _ = asked
    lists = [[int(item) for item in row if item >= 0] for row in items]
    assert metrics.coverage(items, ITEMS) == len({item for row in lists for item in row}) / ITEMS
    arps = [np.mean([counts[item] for item in row]) for row in lists if row]
    chosen = np.mean([counts[wanted] for wanted in target])
    expected = np.mean(arps) / chosen if arps and chosen else np.nan
    np.testing.assert_allclose(metrics.popularity_bias(items, target, np.array(counts)), expected)


@given(queries())
def test_gini_is_the_mean_difference_of_all_pairs_of_items(asked):
    items, _, _ = asked
    listed = [int((items == item).sum()) for item in range(ITEMS)]
    pairs = [abs(one - other) for one in listed for other in listed]
    expected = np.mean(pairs) / (2 * np.mean(listed)) if any(listed) else np.nan
    np.testing.assert_allclose(metrics.gini(items, ITEMS), expected, atol=1e-12)


def test_gini_is_zero_where_all_items_are_listed_alike_and_near_one_where_all_get_the_same():
    assert metrics.gini(np.arange(40).reshape(4, 10), 40) == 0
    assert metrics.gini(np.full((9, 1), 7), 40) == pytest.approx(1 - 1 / 40)


@given(queries(), COUNTS, st.sampled_from([0.25, 0.5, 0.8]))
def test_fair_counts_the_items_of_the_lists_that_are_among_the_least_popular(asked, counts, alpha):
    items, _, _ = asked
    unpopular = sorted(range(ITEMS), key=lambda item: (counts[item], item))[: int(alpha * ITEMS)]
    listed = [item in unpopular for row in items.tolist() for item in row if item >= 0]
    expected = np.mean(listed) if listed else np.nan
    np.testing.assert_allclose(metrics.fair(items, np.array(counts), alpha), expected)


@given(COUNTS, st.integers(1, 9))
def test_the_head_are_the_fewest_items_that_hold_the_share(counts, tenths):
    held = metrics.head(np.array(counts), tenths / 10)
    inside = sorted((count for count, part in zip(counts, held, strict=True) if part), reverse=True)
    outside = [count for count, part in zip(counts, held, strict=True) if not part]
    assert 10 * sum(inside) >= tenths * sum(counts)
    assert 10 * sum(inside[:-1]) < tenths * sum(counts) or not inside
    assert not inside or not outside or inside[-1] >= max(outside)


@given(queries(), COUNTS, st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS))
def test_the_scorecard_of_a_slice_is_that_of_its_queries(asked, counts, cold):
    items, target, _ = asked
    popularity, cold = np.array(counts), np.array(cold)
    card = metrics.scorecard(items, target, popularity, cold)
    assert card["queries"] == len(target)
    assert card["recall@10"] == pytest.approx(
        np.mean([wanted in row for row, wanted in zip(items, target, strict=True)])
    )
    np.testing.assert_allclose(card["fair_0.8@1"], metrics.fair(items[:, :1], popularity, 0.8))
    np.testing.assert_allclose(card["gini@10"], metrics.gini(items[:, :10], ITEMS))
    for name, members in (("cold", cold), ("tail", ~metrics.head(popularity, 0.8))):
        rows = [row for row, wanted in enumerate(target) if members[wanted]]
        gains = [brute_ndcg(items[row].tolist(), int(target[row]), 10) for row in rows]
        assert card[f"{name}_queries"] == len(rows)
        np.testing.assert_allclose(card[f"{name}_ndcg@10"], np.mean(gains) if rows else np.nan)
        np.testing.assert_allclose(card[f"{name}_recall@10"], np.mean([gain > 0 for gain in gains]) if rows else np.nan)


@patch.object(bootstrap, "FEWEST", 1)
@given(queries(), st.integers(0, 3))
def test_each_draw_is_a_mean_over_whole_users(asked, seed):
    items, target, user = asked
    found = bootstrap_means(user, {"hit": metrics.recall(metrics.ranks(items, target), 5)}, seed=seed, draws=5)
    present = np.unique(user)
    random = np.random.default_rng(seed)
    for sample in found["hit"]:
        drawn = present[random.integers(0, len(present), len(present))]
        rows = np.concatenate([np.flatnonzero(user == one) for one in drawn])
        assert sample == pytest.approx(metrics.recall(metrics.ranks(items, target), 5)[rows].mean())


def test_few_users_have_no_interval():
    values = {"a": np.arange(40.0)}
    few, enough = (bootstrap_means(np.arange(40) % users, values, seed=0)["a"] for users in (9, 10))
    assert np.isnan(few).all()
    assert np.isfinite(enough).all()


def test_draws_are_paired_and_the_interval_covers_the_mean():
    random = np.random.default_rng(0)
    user, value = random.integers(0, 80, 400), random.random(400)
    found = bootstrap_means(user, {"a": value, ("b", 1): 2 * value}, seed=1, draws=500)
    np.testing.assert_allclose(found["b", 1], 2 * found["a"])
    low, high = np.quantile(found["a"], [0.025, 0.975])
    assert low < value.mean() < high
    by_query = np.random.default_rng(0).choice(value, (500, 400)).mean(1)
    assert high - low == pytest.approx(np.quantile(by_query, 0.975) - np.quantile(by_query, 0.025), rel=0.4)


@patch.object(bootstrap, "FEWEST", 1)
def test_a_user_with_all_queries_leaves_no_doubt():
    values = np.array([1.0, 0, 1, 0])
    assert (bootstrap_means(np.zeros(4), {"a": values}, seed=0, draws=20)["a"] == 0.5).all()
