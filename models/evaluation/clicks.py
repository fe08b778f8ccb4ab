"""Metrics of predicted probabilities against binary labels, vectorised over NumPy arrays of N impressions."""

from __future__ import annotations

import numpy as np

EPSILON = 1e-7


def expected_auc(probability: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of a score, from the rows' probabilities of being a positive, [N].

    Of two rows, of which the first turns out positive and the second negative: the chance that the score puts them in
    order, where a tie counts half (the Mann-Whitney statistic). The pair (i, j) thus weighs p_i (1 - p_j). NaN where
    there is no such pair.

    Args:
        probability: true probabilities; labels are those that are 0 or 1.
        score: any numbers that order the rows.
    """
    order, first, last = tied_ranks(score)
    return area(probability[order], 1 - probability[order], first, last)


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: share of (positive, negative) pairs in order, ties half; NaN without both labels."""
    return expected_auc((label > 0).astype(np.float64), score)


def tied_ranks(score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending order of rows and, for each in that order, the first position of its tie and the one after it."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    return order, np.searchsorted(ordered, ordered, "left"), np.searchsorted(ordered, ordered, "right")


def area(positive: np.ndarray, negative: np.ndarray, first: np.ndarray, last: np.ndarray) -> float:
    """AUC of rows in order of score, from their masses of positives and negatives."""
    below = np.concatenate([[0.0], np.cumsum(negative)])
    pairs = positive.sum() * below[-1]
    return float(positive @ (below[first] + below[last]) / (2 * pairs)) if pairs > 0 else float("nan")


def user_auc(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> float:
    """Means of the users' own AUCs, weighted by their impressions; users with one kind of label do not count.

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
    """Means binary cross-entropy in nats; NaN without a row."""
    if not len(label):
        return float("nan")
    p = np.clip(probability.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(-np.mean(np.where(label > 0, np.log(p), np.log1p(-p))))


def normalized_entropy(label: np.ndarray, probability: np.ndarray) -> float:
    """Log-loss over the entropy of the mean rate (He et al. 2014, doi 10.1145/2648584.2648589); below 1 is of use.

    NaN without both labels.
    """
    positives = int((label > 0).sum())
    if positives in (0, len(label)):
        return float("nan")
    return log_loss(label, probability) / log_loss(label, np.full(len(label), positives / len(label)))


def calibration(label: np.ndarray, probability: np.ndarray) -> float:
    """Sums of predictions over the number of positives; 1 is right, NaN without a positive."""
    positives = float((label > 0).sum())
    return float(probability.sum() / positives) if positives else float("nan")


def scorecard(user: np.ndarray, label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Returns all of the above: auc, user_auc, log_loss, ne, calibration."""
    return {
        "auc": auc(label, probability),
        "user_auc": user_auc(user, label, probability),
        "log_loss": log_loss(label, probability),
        "ne": normalized_entropy(label, probability),
        "calibration": calibration(label, probability),
    }
