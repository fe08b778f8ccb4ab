from __future__ import annotations

import numpy as np
import pytest

from models.metrics import calibration, log_loss
from models.popularity import Popularity, fit_logistic, fit_popularity


def draw(rate: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    item = random.integers(0, len(rate), rows)
    return item, (random.random(rows) < rate[item]).astype(np.float32)


def fit(train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], items: int) -> Popularity:
    return fit_popularity(np.bincount(train[0], train[1], items), np.bincount(train[0], minlength=items), valid)


def test_rates_are_recovered_and_calibrated() -> None:
    rate = np.linspace(0.05, 0.6, 40)
    baseline = fit(draw(rate, 8000, 0), draw(rate, 4000, 1), 40)
    item, label = draw(rate, 4000, 2)
    assert np.abs(baseline.probability - rate).mean() < 0.05
    assert calibration(label, baseline.probability[item]) == pytest.approx(1, abs=0.1)
    assert log_loss(label, baseline.probability[item]) < log_loss(label, np.full(4000, label.mean()))


def test_an_item_without_exposure_is_taken_for_the_average() -> None:
    valid = (np.array([0, 0, 1, 1] * 50), np.array([1.0, 1, 1, 0] * 50))
    baseline = fit_popularity(np.array([90.0, 10, 0]), np.array([100.0, 100, 0]), valid)
    low, high = sorted(baseline.probability[:2])
    assert low < baseline.probability[2] < high


def test_an_order_that_turns_round_on_validation_is_dropped() -> None:
    slope, intercept = fit_logistic(np.array([0.0, 1, 2, 3] * 10), np.array([1.0, 1, 0, 0] * 10))
    assert slope == 0
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.5)
