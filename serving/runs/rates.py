"""Click-through of runs, with intervals that know that the answers to one user are alike."""

from __future__ import annotations

import math
from typing import NamedTuple

from serving.stores.base import Tally

Z = 1.959964  # of a normal distribution, for 95 %


class Rate(NamedTuple):
    """A share, or a difference of two, and its interval of 95 %."""

    value: float
    low: float
    high: float


def rate(tally: Tally) -> Rate | None:
    """Returns the share of answers that users acted on; None without answers.

    Wilson's interval (1927, doi 10.1080/01621459.1927.10502953) over as many answers as they are worth: users are what
    was drawn, so the variance of the share is that of a ratio of sums over users. Where all or none were acted on it
    says nothing, and each user counts for one answer.
    """
    m, n, c = tally.users, tally.answers, tally.acted
    if not n:
        return None
    p = c / n
    spread = tally.acted_squared - 2 * p * tally.both + p * p * tally.answers_squared
    variance = spread / n**2 * (m / (m - 1) if m > 1 else math.inf)
    worth = min(n, p * (1 - p) / variance) if 0 < c < n and variance > 0 else n if 0 < c < n else m
    worth = max(worth, 1.0)
    middle = (p + Z * Z / (2 * worth)) / (1 + Z * Z / worth)
    half = Z * math.sqrt(p * (1 - p) / worth + Z * Z / (4 * worth**2)) / (1 + Z * Z / worth)
    return Rate(p, max(0.0, middle - half), min(1.0, middle + half))


def difference(one: Rate, other: Rate) -> Rate:
    """Returns by how much another share is above one (Newcombe 1998, method 10, doi 10.1002/sim.4780170803)."""
    value = other.value - one.value
    below = math.hypot(other.value - other.low, one.high - one.value)
    above = math.hypot(other.high - other.value, one.value - one.low)
    return Rate(value, value - below, value + above)
