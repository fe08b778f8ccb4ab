from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation import clicks
from models.evaluation.bootstrap import bootstrap_auc, histogram_aucs, interval, resampled_histograms

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=30
)  # user, label, score with ties


def brute_auc(label: np.ndarray, score: np.ndarray) -> float:
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in score[label > 0] for n in score[label <= 0]]
    return float(np.mean(pairs)) if pairs else float("nan")


def columns(rows: list[tuple[int, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, label, score = zip(*rows, strict=True)
    return np.array(user), np.array(label, float), np.array(score, float) / 4


@given(ROWS)
def test_auc_counts_ordered_pairs(rows: list[tuple[int, bool, int]]) -> None:
    _, label, score = columns(rows)
    np.testing.assert_allclose(clicks.auc(label, score), brute_auc(label, score))


def scorecard(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    return {"auc": clicks.auc(label, score), **clicks.Sums.of(user, label, score).metrics()}


@given(ROWS)
def test_user_auc_is_the_weighted_mean_of_the_users_aucs(rows: list[tuple[int, bool, int]]) -> None:
    user, label, score = columns(rows)
    aucs = {u: brute_auc(label[user == u], score[user == u]) for u in np.unique(user)}
    counted = [u for u, value in aucs.items() if not np.isnan(value)]
    expected = (
        np.average([aucs[u] for u in counted], weights=[(user == u).sum() for u in counted])
        if counted
        else float("nan")
    )
    np.testing.assert_allclose(scorecard(user, label, score)["user_auc"], expected)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.integers(0, 4)), min_size=1))
def test_the_expected_auc_weighs_pairs_by_their_probability(rows: list[tuple[int, float, int]]) -> None:
    weight, probability, score = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs = np.outer(weight * probability, weight * (1 - probability))
    in_order = (score[:, None] > score) + (score[:, None] == score) / 2
    expected = (pairs * in_order).sum() / pairs.sum() if pairs.sum() > 0 else np.nan
    np.testing.assert_allclose(
        clicks.expected_auc(*(np.repeat(each, weight.astype(int)) for each in (probability, score))), expected
    )


def test_the_expected_auc_is_that_of_many_labels_drawn() -> None:
    random = np.random.default_rng(0)
    probability = random.random(300)
    score = probability + 0.5 * random.normal(size=300)
    drawn = [clicks.auc((random.random(300) < probability).astype(float), score) for _ in range(400)]
    assert clicks.expected_auc(probability, score) == pytest.approx(np.mean(drawn), abs=0.005)


def test_losses_on_known_values() -> None:
    label, probability = np.array([1.0, 0, 0, 0]), np.array([0.5, 0.5, 0.25, 0.25])
    loss = -(2 * np.log(0.5) + 2 * np.log(0.75)) / 4
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert clicks.total_loss(label, probability) == pytest.approx(4 * loss)
    card = scorecard(np.arange(4), label, probability)
    assert card["log_loss"] == pytest.approx(loss)
    assert card["ne"] == pytest.approx(loss / entropy)
    assert card["calibration"] == pytest.approx(1.5)


def test_the_mean_rate_has_a_normalized_entropy_of_one() -> None:
    label = np.array([1.0, 0, 0, 1, 0])
    assert scorecard(np.arange(5), label, np.full(5, 0.4))["ne"] == pytest.approx(1)
    assert np.isfinite(clicks.total_loss(label, np.array([0.0, 1, 1, 0, 0])))


@pytest.mark.parametrize("label", [[], [0.0, 0.0], [1.0, 1.0]])
def test_what_one_kind_of_label_leaves_undefined_is_nan(label: list[float]) -> None:
    values = scorecard(np.arange(len(label)), np.array(label), np.full(len(label), 0.5))
    undefined = {name for name, value in values.items() if np.isnan(value)}
    known = {"log_loss"} if label else set()
    assert undefined == values.keys() - known - ({"calibration"} if any(label) else set())


def test_bootstrap_is_paired_seeded_and_covers_the_auc() -> None:
    random = np.random.default_rng(0)
    user, label = random.integers(0, 50, 1000), random.random(1000).round()
    score = label + random.normal(size=1000)
    samples = bootstrap_auc((user,), label, {"a": score, "b": np.stack([score * 2, -score])}, seed=1)
    low, high = interval(samples["a"])
    assert low < clicks.auc(label, score) < high
    np.testing.assert_allclose(samples["b"], [samples["a"], 1 - samples["a"]])
    again = bootstrap_auc((user,), label, {"a": score}, seed=1)
    assert (samples["a"] == again["a"]).all()


def test_bootstrap_draws_whole_users_and_whole_items() -> None:
    """A user who alone is right and an item that alone is right: a draw without it has the AUC of the others."""
    user, item = (index.reshape(-1) for index in np.indices((4, 3)))
    label = np.array([1.0, 0, 1, 0] * 3)
    right = (user == 0) | (item == 0)
    score = np.where(right, label, 0.5)
    by_user, by_both = (
        bootstrap_auc(units, label, {"a": score}, seed=0, draws=500)["a"] for units in ((user,), (user, item))
    )
    assert (by_user > 0.5 + 1e-9).all()  # item 0 is always there
    assert np.isclose(by_both[~np.isnan(by_both)], 0.5).any()


@given(ROWS, st.integers(1, 3))
def test_sums_over_partitions_of_users_are_those_of_all_rows(rows, partitions) -> None:
    user, label, score = columns(rows)
    parts = [user % partitions == number for number in range(partitions)]
    sums = [clicks.Sums.of(user[part], label[part], score[part]) for part in parts]
    found = clicks.Sums(*map(sum, zip(*sums, strict=True))).metrics()
    whole = scorecard(user, label, score)
    whole.pop("auc")
    assert found == pytest.approx(whole, nan_ok=True)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=50), st.sampled_from([1, 5, 64]))
def test_a_histogram_tells_auc_within_its_error(rows, bins) -> None:
    label, score = (np.array(column, float) for column in zip(*rows, strict=True))
    exact, (found, error) = brute_auc(label, score), clicks.histogram_auc(clicks.histogram(label, score, bins))
    assert np.isnan(found) == np.isnan(error) == np.isnan(exact)
    assert np.isnan(exact) or abs(found - exact) <= error + 1e-12
    binned = clicks.score_bins(score, bins).astype(float)  # ties within a bin count half
    np.testing.assert_allclose(found, brute_auc(label, binned))


def test_auc_is_exact_up_to_a_number_of_rows_and_by_a_histogram_beyond() -> None:
    random = np.random.default_rng(0)
    label = (random.random(900) < 0.3).astype(float)
    score = 1 / (1 + np.exp(2 - label - random.normal(size=900)))
    exact = clicks.auc(label, score)
    for most, keys in ((900, {"auc"}), (899, {"auc", "auc_error"}), (10, {"auc", "auc_error"})):
        tally = clicks.AucTally(most)
        for rows in np.array_split(np.arange(900), 7):
            tally.add(label[rows], score[rows])
        found = tally.scores()
        assert found.keys() == keys
        assert found["auc"] == pytest.approx(exact, abs=found.get("auc_error", 0))
        assert found.get("auc_error", 0) < 1e-3
    assert np.isnan(clicks.AucTally().scores()["auc"])


def test_resamples_of_partitions_add_up_and_cover_the_auc() -> None:
    random = np.random.default_rng(0)
    user, label = random.integers(1, 1 << 62, 60)[random.integers(0, 60, 2000)], random.random(2000).round()
    score = 1 / (1 + np.exp(-label - random.normal(size=2000)))
    settings = {"seed": 1, "draws": 300}
    whole = resampled_histograms(user, label, score, **settings)
    parts = [
        resampled_histograms(user[part], label[part], score[part], **settings)
        for part in (user % 2 == 0, user % 2 == 1)
    ]
    assert (sum(parts) == whole).all()
    aucs = histogram_aucs(whole)
    low, high = interval(aucs)
    assert low < clicks.auc(label, score) < high
    multinomial = bootstrap_auc((user,), label, {"a": score}, seed=1, draws=300)["a"]
    assert aucs.std() == pytest.approx(multinomial.std(), rel=0.2)
    assert aucs.mean() == pytest.approx(multinomial.mean(), abs=0.003)
    reverse = histogram_aucs(resampled_histograms(user, label, 1 - score, **settings))
    np.testing.assert_allclose(reverse, 1 - aucs, atol=1e-3)  # the same users are drawn for every score
    assert (histogram_aucs(resampled_histograms(user, label, score, seed=2, draws=5)) != aucs[:5]).any()


def test_users_are_drawn_whole_and_once_on_average() -> None:
    user = np.repeat(np.arange(1, 2001), 3)
    counts = resampled_histograms(user, np.ones(6000), np.full(6000, 0.5), seed=0, draws=20).sum((1, 2))
    assert (counts % 3 == 0).all()
    assert counts.mean() == pytest.approx(6000, rel=0.02)
    assert (counts / 3).std() == pytest.approx(2000**0.5, rel=0.5)
