"""The baseline that every ranker has to beat: how popular an item was in training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.evaluation.clicks import log_loss

PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Popularity(NamedTuple):
    """Probability of a positive per item, the same for every user."""

    probability: np.ndarray  # float64 [items]
    prior: float  # exposure that the mean weighs in an item's score


def fit_popularity(positives: np.ndarray, exposure: np.ndarray, valid: tuple[np.ndarray, np.ndarray]) -> Popularity:
    """Fit on training counts, choose the prior and calibrate on valid.

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


def fit_logistic(score: np.ndarray, label: np.ndarray, *, steps: int = 25) -> tuple[float, float]:
    """Slope (≥ 0) and intercept of a logistic regression on one score, by Newton's method with a slight ridge."""
    centre, scale = float(score.mean()), float(score.std()) or 1.0
    features = np.stack([(score - centre) / scale, np.ones(len(score))], axis=1)
    target = (label > 0).astype(np.float64)
    ridge = np.eye(2)
    weights = np.zeros(2)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(features @ weights)))
        gradient = features.T @ (p - target) + ridge @ weights * 1e-3
        hessian = (features * (p * (1 - p))[:, None]).T @ features + ridge * 1e-3
        weights -= np.linalg.solve(hessian, gradient)
    if weights[0] < 0:  # fewer clicks on popular items: the order would turn round, so the mean rate is left
        rate = (target.sum() + 1) / (len(target) + 2)
        return 0.0, float(np.log(rate / (1 - rate)))
    return float(weights[0] / scale), float(weights[1] - weights[0] * centre / scale)
