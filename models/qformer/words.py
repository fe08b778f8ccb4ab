"""Which words of a catalogue's texts tell what a picture shows: those that a linear model can tell from it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

JOINERS = "-'’"
LEAST_ITEMS = 8  # that have a word, in each half
TRUST = 0.7  # area under the curve, on pictures that were not fitted, from which on a word is seen
DOUBT = 2.0  # standard errors that are taken off it first
RIDGE = 0.03  # of the mean variance
WORDS = 256  # at a time
MOST = 4_000  # words that are looked at, the most frequent first


def split_words(text: str) -> list[str]:
    """Returns the lower-case words of a text: letters, digits and their marks, joined by hyphens and apostrophes.

    >>> split_words("Men's T-Shirt, 100% cotton")
    ["men's", 't-shirt', '100', 'cotton']
    """
    marked = "".join(
        char if char.isalnum() or unicodedata.category(char)[0] == "M" or char in JOINERS else " "
        for char in unicodedata.normalize("NFKC", text).lower()
    )
    return [word for part in marked.split() if (word := part.strip(JOINERS))]


def seen_words(texts: Sequence[str], features: Tensor) -> dict[str, float]:
    """Returns the words of texts that pictures tell, and how well.

    A ridge regression from features to the presence of each word is fitted on one half of the items and judged on the
    other, both ways. A word is kept if the mean of both areas under its curve is surely above `TRUST` (Hanley & McNeil
    1982); that is how well it is told.

    Args:
        texts: a title or sentence for each picture.
        features: float [N, width], one row for each text, in an order that means nothing.
    """
    words = [split_words(text) for text in texts]
    counts = Counter(word for row in words for word in set(row))
    known = [word for word, count in counts.most_common(MOST) if count >= 2 * LEAST_ITEMS and not word.isdigit()]
    if not known:
        return {}
    rows = [set(row) for row in words]
    halves = torch.arange(len(words)) % 2 == 0
    folds = [(_ridge(features[fitted]), fitted) for fitted in (halves, ~halves)]
    found: dict[str, float] = {}
    for start in range(0, len(known), WORDS):
        block = known[start : start + WORDS]
        there = torch.tensor([[word in row for word in block] for row in rows], dtype=torch.float32)
        judged = [_areas(ridge(there[fitted], features[~fitted]), there[~fitted]) for ridge, fitted in folds]
        areas, variances = (sum(both) / 2 for both in zip(*judged, strict=True))
        sure = areas - DOUBT * (variances / 2).sqrt()  # of a mean of two
        found |= {word: float(area) for word, area in zip(block, sure, strict=True) if area > TRUST}
    return found


def _ridge(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns what fits columns to rows and scores other rows by them."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-3)
    x = (x - mean) / deviation
    factor = torch.linalg.cholesky(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1]))

    def scores(y: Tensor, others: Tensor) -> Tensor:
        return ((others - mean) / deviation) @ torch.cholesky_solve(x.T @ (y - y.mean(0)), factor)

    return scores


def _areas(scores: Tensor, held_y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the areas under the curves of all words on held-out rows, 0 where they are few, and their variances."""
    ranks = scores.argsort(0).argsort(0).double() + 1
    positive = held_y.double().sum(0)
    negative = len(held_y) - positive
    area = ((ranks * held_y).sum(0) - positive * (positive + 1) / 2) / (positive * negative).clamp_min(1)
    first, second = area / (2 - area), 2 * area.square() / (1 + area)
    spread = area * (1 - area) + (positive - 1) * (first - area.square()) + (negative - 1) * (second - area.square())
    enough = (positive >= LEAST_ITEMS) & (negative >= LEAST_ITEMS)
    return area * enough, (spread / (positive * negative).clamp_min(1)).clamp_min(0)
