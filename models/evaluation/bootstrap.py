"""Bootstrap intervals: resampled users, items and seeds behind every figure, and what they allow to say."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from models.evaluation.clicks import area, histogram_auc, score_bins, tied_ranks
from storage.hashing import draw_uniform, hash_numbers

RESAMPLED_BINS = 4096  # of the histogram of each resample
FEWEST = 10  # users or items, below which resamples are too much alike for an interval
POISSON = np.cumsum([math.exp(-1) / math.factorial(times) for times in range(20)])  # P(at most 0, 1, … times)
Key = TypeVar("Key", bound=Hashable)


class Estimate(NamedTuple):
    """A figure of a model that was fitted from S seeds, or the difference of two such figures.

    Attributes:
        seeds: value of each seed, float [S].
        drawn: means over resampled seeds of the values on resampled users, float [draws].
    """

    seeds: np.ndarray
    drawn: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.seeds.mean())

    @property
    def interval(self) -> list[float]:
        """The 95% interval of the mean."""
        return interval(self.drawn)

    def minus(self, other: Estimate) -> Estimate:
        """Returns the difference, paired by seed and by resample."""
        return Estimate(self.seeds - other.seeds, self.drawn - other.drawn)


def over_seeds(values: np.ndarray, samples: np.ndarray, *, seed: int) -> Estimate:
    """Estimates the mean over S seeds; the same `seed` resamples the same seeds, so that estimates are paired.

    Of S seeds S - 1 are drawn: their mean then varies as that of S does (Rao and Wu 1988, JASA 83:231).

    Args:
        values: of each seed, float [S].
        samples: the same on resampled users, float [S, draws].
        seed: of the resamples.
    """
    seeds, draws = samples.shape
    picked = np.random.default_rng([seed, seeds]).integers(0, seeds, (max(seeds - 1, 1), draws))
    return Estimate(values, np.take_along_axis(samples, picked, axis=0).mean(axis=0))


def bootstrap_auc(
    units: Sequence[np.ndarray], probability: np.ndarray, scores: dict[str, np.ndarray], *, seed: int, draws: int = 200
) -> dict[str, np.ndarray]:
    """AUCs of resampled users (or users and items), the same draws for every score, so that differences are paired.

    A user's rows depend on each other, as an item's do: whole users are drawn with replacement, and so are items. A row
    weighs how often its user was drawn times how often its item was: the pigeonhole bootstrap (Owen 2007,
    doi 10.1214/07-AOAS122), whose intervals are rather too wide than too narrow.

    Args:
        units: integer or string codes [N] of every kind of unit: (user,) or (user, item).
        probability: true probabilities or labels, see `expected_auc`; [N], at least one.
        scores: by name, float [..., N].

    Returns:
        float64 [..., draws] for every score.
    """
    random = np.random.default_rng(seed)
    codes = [np.unique(unit, return_inverse=True)[1] for unit in units]
    sizes = [int(code.max()) + 1 for code in codes]
    times = [
        np.stack([np.bincount(random.integers(0, size, size), minlength=size) for _ in range(draws)]).astype(np.float64)
        for size in sizes
    ]

    def resample(score: np.ndarray) -> np.ndarray:
        order, first, last = tied_ranks(score)
        rate, own = probability[order], [code[order] for code in codes]
        areas = np.empty(draws)
        for draw in range(draws):
            mass = math.prod(drawn[draw][code] for drawn, code in zip(times, own, strict=True))
            positive = mass * rate
            areas[draw] = area(positive, mass - positive, first, last)
        return areas

    return {name: np.apply_along_axis(resample, -1, score) for name, score in scores.items()}


def resampled_histograms(
    user: np.ndarray, label: np.ndarray, probability: np.ndarray, *, seed: int, draws: int
) -> np.ndarray:
    """Counts negatives and positives by score in resamples of users, int64 [draws, 2, RESAMPLED_BINS].

    The Poisson bootstrap (Hanley and MacGibbon 2006, doi 10.1016/j.cmpb.2006.04.006): a user's rows count a number of
    times that is Poisson(1), all alike. The number follows from the user's hash, the draw and the seed. So no list of
    all users is needed, the histograms of partitions of users add up to that of all, and draws of several scores are
    paired. `histogram_aucs` gives their AUCs.

    Args:
        user: hashes int64 [N].
        label, probability: [N].
        seed: of the resamples.
        draws: number of resamples.
    """
    users, code = np.unique(user, return_inverse=True)
    place = score_bins(probability, RESAMPLED_BINS) + RESAMPLED_BINS * (label > 0)
    key = hash_numbers(users, seed=seed)
    counts = np.empty((draws, 2, RESAMPLED_BINS), np.int64)
    for draw in range(draws):
        times = np.searchsorted(POISSON, draw_uniform(key, draw), side="right")
        counts[draw] = np.bincount(place, times[code], 2 * RESAMPLED_BINS).reshape(2, -1)
    return counts


def histogram_aucs(counts: np.ndarray) -> np.ndarray:
    """Returns the AUC of each resample, float64 [draws], from `resampled_histograms`; NaN without both labels."""
    return np.array([histogram_auc(each)[0] for each in counts])


def ratio(over: Any, under: Any) -> np.ndarray:
    """Returns quotients, float64; NaN where the divisor is not above 0."""
    over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
    return np.divide(over, under, out=np.full_like(under, np.nan), where=under > 0)


def interval(samples: np.ndarray, *, level: float = 0.95) -> list[float]:
    """Percentile interval [low, high] of bootstrap samples."""
    return [float(q) for q in np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])]


def verdict(bounds: Sequence[float]) -> int | None:
    """Returns 1 or -1 for an interval above or below 0, 0 for one that contains it, None for one of NaN."""
    low, high = bounds
    if not np.isfinite([low, high]).all():
        return None
    return int(low > 0) - int(high < 0)


def least_shown(bounds: Sequence[float]) -> float:
    """Returns the change that an interval of this width would leave out 0 for in four of five repeats.

    It is 1.96 + 0.84 standard errors of a normal estimate, whose 95% interval is 2 x 1.96 of them wide.

    >>> round(least_shown([-0.01, 0.0292]), 3)
    0.028
    """
    return (bounds[1] - bounds[0]) * (1.96 + 0.8416) / (2 * 1.96)


def size(change: float, bounds: Sequence[float]) -> str:
    """Formats a change and its interval without their sign.

    >>> size(-0.03, [-0.04, -0.02])
    '0.0300 (0.0200 to 0.0400)'
    """
    least, most = sorted(map(abs, bounds))
    return f"{abs(change):.4f} ({least:.4f} to {most:.4f})"


def bootstrap_means(
    user: np.ndarray, values: dict[Key, np.ndarray], *, seed: int, draws: int = 200
) -> dict[Key, np.ndarray]:
    """Means over the queries of resampled users, float64 [draws] for each of the values.

    A user's queries depend on each other, so users are drawn whole, with replacement. The draws are the same for all
    values: differences and ratios of what is returned are paired. NaN with fewer than FEWEST users.

    Args:
        user: integer or string codes [Q], at least one.
        values: float [Q] each.
    """
    random = np.random.default_rng(seed)
    _, code = np.unique(user, return_inverse=True)
    queries = np.bincount(code)
    if len(queries) < FEWEST:
        return {name: np.full(draws, np.nan) for name in values}
    sums = np.stack([np.bincount(code, value) for value in values.values()], axis=1)  # by user
    means = np.empty((draws, len(values)))
    for draw in range(draws):
        times = np.bincount(random.integers(0, len(queries), len(queries)), minlength=len(queries)).astype(np.float64)
        means[draw] = (times @ sums) / (times @ queries)
    return dict(zip(values, means.T, strict=True))
