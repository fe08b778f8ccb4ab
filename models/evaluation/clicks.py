"""Metrics of predicted probabilities against binary labels, vectorised over NumPy arrays of N impressions.

Rows may come in parts, each with all rows of its users: sums over the parts give the metrics of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPSILON = 1e-7
EXACT_ROWS = 1_000_000  # whose scores may be gathered for an exact AUC
BINS = 1 << 16  # of a histogram of scores


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


def score_bins(probability: np.ndarray, bins: int) -> np.ndarray:
    """Returns the bin of each probability, int64 [N].

    Bins are equally wide in the logit, from that of EPSILON to that of 1 - EPSILON: wherever the scores lie, those of a
    bin are alike in their odds.
    """
    p = np.clip(probability.astype(np.float64), EPSILON, 1 - EPSILON)
    share = 0.5 - (np.log(p) - np.log1p(-p)) / (2 * np.log(EPSILON))  # 0 to 1
    return np.clip((share * bins).astype(np.int64), 0, bins - 1)


def histogram(label: np.ndarray, probability: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Returns counts of negatives and positives by score, int64 [2, bins]; see `score_bins`."""
    place = score_bins(probability, bins)
    return np.bincount(place + bins * (label > 0), minlength=2 * bins).reshape(2, bins)


def histogram_auc(counts: np.ndarray) -> tuple[float, float]:
    """Returns the AUC of binned scores, [2, bins], and by how much that of the scores may differ at most.

    Pairs within a bin count half, so that the AUC is off by half of their share if all of them are in order, or none.
    """
    negative, positive = counts.astype(np.float64)
    first = np.arange(len(negative))
    pairs = positive.sum() * negative.sum()
    error = float(positive @ negative / (2 * pairs)) if pairs > 0 else float("nan")
    return area(positive, negative, first, first + 1), error


def binned_scores(counts: np.ndarray) -> dict[str, float]:
    """Returns auc and auc_error of `histogram_auc`."""
    return dict(zip(("auc", "auc_error"), histogram_auc(counts), strict=True))


class AucTally:
    """The AUC of rows that come in parts: exact up to a number of rows, beyond that by a histogram."""

    def __init__(self, exact_rows: int = EXACT_ROWS) -> None:
        self._exact_rows, self._rows = exact_rows, 0
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._counts = np.zeros((2, BINS), np.int64)

    def add(self, label: np.ndarray, probability: np.ndarray) -> None:
        """Adds rows, [N] each."""
        self._held.append((label, probability))
        self._rows += len(label)
        if self._rows > self._exact_rows:
            self._counts += sum(histogram(*each) for each in self._held)
            self._held.clear()

    def scores(self) -> dict[str, float]:
        """Returns auc and, where it is by a histogram, auc_error, by which it is off at most."""
        if self._rows > self._exact_rows:
            return binned_scores(self._counts)
        held = [(np.empty(0), np.empty(0)), *self._held]
        label, score = (np.concatenate(each) for each in zip(*held, strict=True))
        return {"auc": auc(label, score)}


def user_areas(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Returns sums over users of AUC times impressions, and of impressions; users with one kind of label do not count.

    Their ratio is user_auc, the "GAUC" of Zhou et al. 2018 (Deep Interest Network, arXiv 1706.06978).

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
    area = (np.bincount(codes, rank * hits) - positives * (positives + 1) / 2)[counted] / pairs[counted]
    return float(area @ impressions[counted]), float(impressions[counted].sum())


def total_loss(label: np.ndarray, probability: np.ndarray) -> float:
    """Sums binary cross-entropy in nats."""
    p = np.clip(probability.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(-np.sum(np.where(label > 0, np.log(p), np.log1p(-p))))


class Sums(NamedTuple):
    """What `metrics` needs of rows; the sums of several parts add up."""

    rows: float
    positives: float
    loss: float  # see `total_loss`
    predicted: float  # sum of the probabilities
    user_areas: float  # see `user_areas`
    user_rows: float

    @classmethod
    def of(cls, user: np.ndarray, label: np.ndarray, probability: np.ndarray) -> Sums:
        """Sums over rows, [N] each, that are all the rows of their users."""
        return cls(
            len(label),
            float((label > 0).sum()),
            total_loss(label, probability),
            float(probability.sum()),
            *user_areas(user, label, probability),
        )

    def metrics(self) -> dict[str, float]:
        """Returns user_auc, log_loss, ne and calibration; what is not defined is NaN.

        ne is the log-loss over the entropy of the mean rate (He et al. 2014, doi 10.1145/2648584.2648589); below 1 is
        of use. calibration is the sum of the predictions over the number of positives; 1 is right.
        """
        rate = np.clip(_ratio(self.positives, self.rows), EPSILON, 1 - EPSILON)
        entropy = -(self.positives * np.log(rate) + (self.rows - self.positives) * np.log1p(-rate))
        both = 0 < self.positives < self.rows
        return {
            "user_auc": _ratio(self.user_areas, self.user_rows),
            "log_loss": _ratio(self.loss, self.rows),
            "ne": self.loss / float(entropy) if both else float("nan"),
            "calibration": _ratio(self.predicted, self.positives),
        }


def _ratio(over: float, under: float) -> float:
    return over / under if under else float("nan")
