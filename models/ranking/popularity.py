"""The baseline that every ranker has to beat: how popular an item was in training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from models.evaluation.clicks import log_loss

PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Popularity(NamedTuple):
    """Probability of a positive per item, the same for every user."""

    probability: np.ndarray  # float64 [items]
    prior: float  # exposure that the mean weighs in an item's score


def fit_popularity(positives: np.ndarray, exposure: np.ndarray, valid: tuple[np.ndarray, np.ndarray]) -> Popularity:
    """Fits on training counts, choose the prior and calibrate on valid.

    An item's score is the log of its smoothed rate, (positives + prior * rate of all) / (exposure + prior). A logistic
    curve fitted on valid (Platt 1999) turns scores into probabilities; its slope is kept at or above 0.

    Args:
        positives: positive events per item in training, [items].
        exposure: what they are counted over, [items]: impressions for a log with labels; for one without, days on
            offer, so that an item does not lead by age alone.
        valid: item rows (int [N]) and labels (float [N]).
    """
    rate = positives.sum() / exposure.sum()
    candidates = []
    for prior in PRIORS:
        score = np.log((positives + prior * rate) / (exposure + prior))
        slope, intercept = fit_logistic(score[valid[0]], valid[1])
        probability = 1 / (1 + np.exp(-(slope * score + intercept)))
        candidates.append((log_loss(valid[1], probability[valid[0]]), Popularity(probability, prior)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def fit_logistic(score: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Fits a logistic regression on one score, with a slight ridge; return its slope (at least 0) and intercept."""
    centre, scale = float(score.mean()), float(score.std()) or 1.0
    target = label > 0
    slope = -1.0
    if 0 < target.sum() < len(target):
        model = LogisticRegression(C=1e3, tol=1e-8).fit((score[:, None] - centre) / scale, target)
        slope, intercept = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
    if slope < 0:  # fewer clicks on popular items: the order would turn round, so the mean rate is left
        rate = (target.sum() + 1) / (len(target) + 2)
        return 0.0, float(np.log(rate / (1 - rate)))
    return slope, intercept - slope * centre
