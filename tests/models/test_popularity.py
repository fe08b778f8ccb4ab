from __future__ import annotations

import numpy as np
import pytest

from models.metrics import auc, calibration, log_loss
from models.popularity import fit_logistic, fit_popularity


def draw(rate: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    item = random.integers(0, len(rate), rows)
    return item, (random.random(rows) < rate[item]).astype(np.float32)


def test_rates_are_recovered_and_calibrated() -> None:
    rate = np.linspace(0.05, 0.6, 40)
    baseline = fit_popularity(draw(rate, 8000, 0), draw(rate, 4000, 1), items=40, labelled=True)
    item, label = draw(rate, 4000, 2)
    assert np.abs(baseline.probability - rate).mean() < 0.05
    assert calibration(label, baseline.probability[item]) == pytest.approx(1, abs=0.1)
    assert log_loss(label, baseline.probability[item]) < log_loss(label, np.full(4000, label.mean()))


def test_without_labels_counts_of_positives_give_the_order() -> None:
    random = np.random.default_rng(0)
    popular = np.array([0.6, 0.3, 0.1])
    positives, negatives = random.choice(3, 600, p=popular), random.integers(0, 3, 600)
    split = np.concatenate([positives, negatives]), np.repeat([1.0, 0.0], 600)
    baseline = fit_popularity(split, split, items=3, labelled=False)
    assert baseline.probability[0] > baseline.probability[1] > baseline.probability[2]
    assert auc(split[1], baseline.probability[split[0]]) > 0.6


def test_an_order_that_turns_round_on_validation_is_dropped() -> None:
    slope, intercept = fit_logistic(np.array([0.0, 1, 2, 3] * 10), np.array([1.0, 1, 0, 0] * 10))
    assert slope == 0
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.5)
