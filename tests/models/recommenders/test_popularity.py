from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from models.common import recommender
from models.common.jagged import Jagged
from models.common.recommender import best
from models.evaluation.clicks import Sums, total_loss
from models.ranking.popularity import Popularity, fit_logistic, fit_popularity
from models.recommenders import popularity
from models.recommenders.popularity import MostPopular


def draw(rate: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    item = random.integers(0, len(rate), rows)
    return item, (random.random(rows) < rate[item]).astype(np.float32)


def fit(train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], items: int) -> Popularity:
    liked, shown = counts(train, items)
    return fit_popularity(liked, shown, by_label(valid, items))


def counts(rows: tuple[np.ndarray, np.ndarray], items: int) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(rows[0], rows[1], items), np.bincount(rows[0], minlength=items)


def by_label(rows: tuple[np.ndarray, np.ndarray], items: int) -> tuple[np.ndarray, np.ndarray]:
    liked, shown = counts(rows, items)
    return liked, shown - liked


def test_rates_are_recovered_and_calibrated() -> None:
    rate = np.linspace(0.05, 0.6, 40)
    baseline = fit(draw(rate, 8000, 0), draw(rate, 4000, 1), 40)
    item, label = draw(rate, 4000, 2)
    assert np.abs(baseline.probability - rate).mean() < 0.05
    assert Sums.of(item, label, baseline.probability[item]).metrics()["calibration"] == pytest.approx(1, abs=0.1)
    assert total_loss(label, baseline.probability[item]) < total_loss(label, np.full(4000, label.mean()))


def test_an_item_without_exposure_is_taken_for_the_average() -> None:
    valid = (np.array([0, 0, 1, 1] * 50), np.array([1.0, 1, 1, 0] * 50))
    baseline = fit_popularity(np.array([90.0, 10, 0]), np.array([100.0, 100, 0]), by_label(valid, 3))
    low, high = sorted(baseline.probability[:2])
    assert low < baseline.probability[2] < high


def test_counts_by_score_fit_the_curve_of_single_rows() -> None:
    item, label = draw(np.linspace(0.05, 0.6, 40), 3000, 0)
    score = np.random.default_rng(1).normal(size=40) + np.linspace(-3, 0, 40)
    of_rows = score[item]
    model = LogisticRegression(C=1e3, tol=1e-8).fit((of_rows[:, None] - of_rows.mean()) / of_rows.std(), label > 0)
    slope = model.coef_[0, 0] / of_rows.std()
    found = fit_logistic(score, *by_label((item, label), 40))
    assert found == pytest.approx((slope, model.intercept_[0] - slope * of_rows.mean()), abs=1e-9)


def test_an_order_that_turns_round_on_validation_is_dropped() -> None:
    slope, intercept = fit_logistic(np.arange(4.0), np.array([10.0, 10, 0, 0]), np.array([0.0, 0, 10, 10]))
    assert slope == 0
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.5)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 45), st.lists(st.integers(0, 39), max_size=5)
)
def test_the_most_popular_come_first_and_of_equal_ones_the_lower_rows(counts, k, banned):
    banned = [item for item in banned if item < len(counts)]
    everyone = Jagged(torch.tensor([], dtype=torch.int64), torch.tensor([0, 0, 0]))
    left_out = Jagged(torch.tensor(banned, dtype=torch.int64), torch.tensor([0, 0, len(banned)]))
    found = MostPopular(torch.tensor(counts)).recommend(everyone, k=k, banned=left_out)
    for items, scores, without in zip(found.items.tolist(), found.scores.tolist(), ([], banned), strict=True):
        expected = sorted(set(range(len(counts))) - set(without), key=lambda item: (-counts[item], item))[:k]
        assert items == expected + [-1] * (k - len(expected))
        assert scores == [*(counts[item] for item in expected), *[float("-inf")] * (k - len(expected))]


def test_few_scores_are_held_at_once_and_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, held = MostPopular(torch.arange(20) % 7), []
    everyone = Jagged(torch.arange(9), torch.arange(10))
    whole = model.recommend(everyone, k=4, banned=everyone)
    monkeypatch.setattr(
        popularity, "best", lambda scores, **given: (held.append(len(scores)), best(scores, **given))[1]
    )
    monkeypatch.setattr(recommender, "BLOCK_VALUES", 50)
    found = model.recommend(everyone, k=4, banned=everyone)
    assert held == [2, 2, 2, 2, 1]
    assert torch.equal(found.items, whole.items)
    assert torch.equal(found.scores, whole.scores)
