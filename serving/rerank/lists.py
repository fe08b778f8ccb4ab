"""Lists out of candidates: a greedy pass with pins, caps and diversity, and places whose items are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Limit(NamedTuple):
    """A cap over C candidates.

    Attributes:
        has: which of V values each candidate has, bool [C, V].
        most: candidates with the same value among `of` places.
        of: places, counted from the first on.
    """

    has: np.ndarray
    most: int
    of: int


class Listed(NamedTuple):
    """A list of n candidates.

    Attributes:
        at: positions among the candidates, int64 [n].
        pinned: bool [n].
    """

    at: np.ndarray
    pinned: np.ndarray


def standardised(values: np.ndarray) -> np.ndarray:
    """Returns values with mean 0 and standard deviation 1, float64 [C]; 0 where all are the same, and for NaN."""
    known = ~np.isnan(values)
    if not known.any() or not (spread := values[known].std()):
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / spread, 0.0)


def greedy(
    total: np.ndarray,
    k: int,
    *,
    pins: Mapping[int, int],
    limits: Sequence[Limit],
    diversity: float = 0.0,
    vectors: np.ndarray | None = None,
) -> Listed:
    """Fills k places one after the other, each with the best candidate that the limits allow; of equals the first.

    The best has the greatest (1 - diversity) * total - diversity * its greatest cosine with what stands in the list
    (MMR: Carbonell and Goldstein 1998, doi 10.1145/290941.291025). Pins stand in the list from the start. Where no
    candidate obeys the limits, the best of the others is taken; where none is left, the pins behind move up.

    Args:
        total: float64 [C].
        k: places.
        pins: candidates by their places, from 0.
        limits: on values that are shared.
        diversity: from 0 to 1.
        vectors: of the candidates, unit length, float32 [C, D]; needed for diversity.
    """
    pins = {place: at for place, at in pins.items() if place < k}
    free, near = np.ones(len(total), bool), np.full(len(total), -1.0)
    counts = [np.zeros(limit.has.shape[1], np.int64) for limit in limits]
    listed: list[int] = []

    def place(at: int) -> None:
        free[at] = False
        if vectors is not None and diversity:
            np.maximum(near, vectors @ vectors[at], out=near)

    for at in pins.values():
        place(at)
    for position in range(k):
        for limit, count in zip(limits, counts, strict=True):
            if position % limit.of == 0:
                ahead = [at for there, at in pins.items() if position <= there < position + limit.of]
                count[:] = limit.has[ahead].sum(0)
        if position in pins:
            listed.append(pins[position])
            continue
        if not free.any():
            continue
        allowed = free.copy()
        for limit, count in zip(limits, counts, strict=True):
            allowed &= ~limit.has[:, count >= limit.most].any(1)
        value = (1 - diversity) * total - diversity * near
        at = int(np.where(allowed if allowed.any() else free, value, -np.inf).argmax())
        place(at)
        for limit, count in zip(limits, counts, strict=True):
            count += limit.has[at]
        listed.append(at)
    chosen = np.array(listed, np.int64)
    return Listed(chosen, np.isin(chosen, list(pins.values())))


def alike(limits: Sequence[Limit], candidates: int) -> np.ndarray:
    """Returns a number for each of C candidates, the same for those with the same limited values, int64 [C]."""
    has = np.concatenate([np.zeros((candidates, 1), bool), *(limit.has for limit in limits)], axis=1)
    return np.unique(has, axis=0, return_inverse=True)[1].reshape(candidates)


def explored(
    listed: Listed, share: float, groups: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the items of a share of the places that are not pinned, evenly from the candidates outside the list.

    A drawn item is of the group of the one that it replaces. A group with n places and m candidates outside changes
    min(m, n) places at most, each with the probability `share`.

    Args:
        listed: the list.
        share: from 0 to 1.
        groups: of the candidates, int64 [C].
        draw: says what is drawn.

    Returns:
        at: int64 [n]; as in `Listed`.
        propensity: the probability of each item at its place, over all that could have been drawn, float64 [n].
    """
    at, propensity = listed.at.copy(), np.ones(len(listed.at))
    outside = np.ones(len(groups), bool)
    outside[at] = False
    for group in np.unique(groups[at[~listed.pinned]]):
        places = np.flatnonzero(~listed.pinned & (groups[listed.at] == group))
        pool = np.flatnonzero(outside & (groups == group))
        if not (most := min(len(pool), len(places))):
            continue
        changed = draw.permutation(places)[:most]
        drawn = draw.permutation(pool)[:most]
        hit = draw.random(most) < share
        propensity[places] = 1 - share * most / len(places)
        at[changed[hit]] = drawn[hit]
        propensity[changed[hit]] = share * most / (len(places) * len(pool))
    return at, propensity
