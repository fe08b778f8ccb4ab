"""Metrics of predicted probabilities against binary labels, vectorised over NumPy arrays of N impressions."""

from __future__ import annotations

import numpy as np

EPSILON = 1e-7


def weighted_auc(label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Share of (positive, negative) pairs that the score puts in order; ties count half.

    The Mann-Whitney statistic with row weights, float [N]; NaN without both labels.
    """
    order = np.argsort(score, kind="stable")
    label, score, weight = label[order], score[order], weight[order]
    _, group = np.unique(score, return_inverse=True)
    positive = np.bincount(group, weight * (label > 0))
    negative = np.bincount(group, weight * (label <= 0))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs > 0 else float("nan")


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve."""
    return weighted_auc(label, score, np.ones(len(label)))


def user_auc(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> float:
    """Mean of the users' own AUCs, weighted by their impressions; users with one kind of label do not count.

    "GAUC" of Zhou et al. 2018 (Deep Interest Network, arXiv 1706.06978). NaN if no user counts.

    Args:
        user: any integer or string codes [N].
    """
    _, codes = np.unique(user, return_inverse=True)
    _, ranks = np.unique(score, return_inverse=True)
    # Ranks within (user, score) groups: ties share their mean rank, so that pairs in them count half.
    order = np.lexsort((ranks, codes))
    codes, ranks, hits = codes[order], ranks[order], label[order] > 0
    group = np.cumsum(np.r_[False, (codes[1:] != codes[:-1]) | (ranks[1:] != ranks[:-1])])
    sizes = np.bincount(group)
    mean_position = np.cumsum(sizes) - (sizes - 1) / 2
    impressions = np.bincount(codes)
    starts = np.cumsum(impressions) - impressions
    rank = mean_position[group] - starts[codes]
    positives = np.bincount(codes, hits)
    pairs = positives * (impressions - positives)
    counted = pairs > 0
    if not counted.any():
        return float("nan")
    area = (np.bincount(codes, rank * hits) - positives * (positives + 1) / 2)[counted] / pairs[counted]
    return float(np.average(area, weights=impressions[counted]))


def log_loss(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean binary cross-entropy in nats."""
    p = np.clip(probability.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(-np.mean(np.where(label > 0, np.log(p), np.log1p(-p))))


def normalized_entropy(label: np.ndarray, probability: np.ndarray) -> float:
    """Log-loss over the entropy of the mean rate (He et al. 2014, doi 10.1145/2648584.2648589); below 1 is of use."""
    return log_loss(label, probability) / log_loss(label, np.full(len(label), float(np.mean(label > 0))))


def calibration(label: np.ndarray, probability: np.ndarray) -> float:
    """Sum of predictions over the number of positives; 1 is right, NaN without a positive."""
    positives = float((label > 0).sum())
    return float(probability.sum() / positives) if positives else float("nan")


def scorecard(user: np.ndarray, label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """All of the above: auc, user_auc, log_loss, ne, calibration."""
    return {
        "auc": auc(label, probability),
        "user_auc": user_auc(user, label, probability),
        "log_loss": log_loss(label, probability),
        "ne": normalized_entropy(label, probability),
        "calibration": calibration(label, probability),
    }


def bootstrap_auc(
    user: np.ndarray, label: np.ndarray, scores: dict[str, np.ndarray], *, seed: int, draws: int = 200
) -> dict[str, np.ndarray]:
    """AUCs of resampled users, the same users for every score, so that differences are paired.

    A user's impressions depend on each other: whole users are drawn, with replacement.

    Returns:
        float64 [draws] for every score.
    """
    _, codes = np.unique(user, return_inverse=True)
    random = np.random.default_rng(seed)
    users = int(codes.max()) + 1
    weights = [np.bincount(random.integers(0, users, users), minlength=users)[codes] for _ in range(draws)]
    return {
        name: np.array([weighted_auc(label, score, weight) for weight in weights]) for name, score in scores.items()
    }


def interval(samples: np.ndarray, *, level: float = 0.95) -> list[float]:
    """Percentile interval [low, high] of bootstrap samples."""
    return [float(q) for q in np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])]
