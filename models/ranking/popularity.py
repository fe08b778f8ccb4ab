"""The baseline that every ranker has to beat: how popular an item was in training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from models.evaluation.clicks import EPSILON

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
        valid: rows of validation with and without a positive label per item, float [items] each.
    """
    rate = positives.sum() / exposure.sum()
    candidates = []
    for prior in PRIORS:
        score = np.log((positives + prior * rate) / (exposure + prior))
        slope, intercept = fit_logistic(score, *valid)
        probability = 1 / (1 + np.exp(-(slope * score + intercept)))
        p = np.clip(probability, EPSILON, 1 - EPSILON)
        loss = -(valid[0] @ np.log(p) + valid[1] @ np.log1p(-p))
        candidates.append((loss, Popularity(probability, prior)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def fit_logistic(score: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """Fits a logistic regression on one score, with a slight ridge; return its slope (at least 0) and intercept.

    Args:
        score: [N].
        positives, negatives: how many rows have each score, float [N].
    """
    rows = positives + negatives
    centre = float(np.average(score, weights=rows))
    scale = float(np.average((score - centre) ** 2, weights=rows)) ** 0.5 or 1.0
    liked, total = positives.sum(), rows.sum()
    slope = -1.0
    if 0 < liked < total:
        every, weights = np.concatenate([score, score]), np.concatenate([positives, negatives])
        target, used = np.arange(len(every)) < len(score), weights > 0
        model = LogisticRegression(C=1e3, tol=1e-8)
        model.fit((every[used, None] - centre) / scale, target[used], sample_weight=weights[used])
        slope, intercept = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
    if slope < 0:  # fewer clicks on popular items: the order would turn round, so the mean rate is left
        rate = (liked + 1) / (total + 2)
        return 0.0, float(np.log(rate / (1 - rate)))
    return slope, intercept - slope * centre
