"""Visits to the embedded catalogue's shop: when users come, what they need then, and what the shop shows them.

A visit shows eight items in order. Each is drawn without what was shown before it, from a mixture of what shops show:

    q(item) = BROWSED browsed + POPULAR popular + PERSONAL personal + EXPLORED explored

browsed     the page of the needed category, in proportion to appeal; what is popular where nothing is needed
popular     in proportion to appeal, new items ahead
personal    by an old model, which knows the user's tastes of the first day with an error, not what is needed now
explored    any listed item, all alike

So every impression has a known propensity, q(item) / (1 - q of what was shown before), which the log tells.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from workflows.catalogs.canonical import TIMESTAMP
from workflows.catalogs.synthetic.behaviour import ATTRIBUTES, DAY_US, DAYS, NOVELTY_DAYS, SECOND_US, START_US, World

SHOWN = 8  # items of a visit, at positions 1 to 8
VISITS_PER_USER = 5
BROWSED, POPULAR, PERSONAL, EXPLORED = 0.35, 0.25, 0.3, 0.1
NEW = 1.0  # log of what a new item is shown more often, fading as its novelty does
PERSONAL_APPEAL = 0.5  # how far the old model follows appeal, too
IN_NEED = 0.8  # share of the visits that begin with a need
TAKEN_UP, TAKEN_UP_DAYS = 0.5, 14  # chance that the next visit within so many days is for the same need
HOURS = np.array([2, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 6, 7, 7, 6, 6, 6, 7, 8, 9, 10, 9, 7, 4], dtype=np.float64)
HOUR_US, PAUSE = 3_600_000_000, 20  # seconds between two items, at most


def draw_visits(known: World, rng: np.random.Generator) -> pa.Table:
    """Draws when users come and what they need: user (row), start, need (a category or null), in order of time.

    The activity of users is long-tailed; each comes once at least, and not twice within an hour. A need is for a
    category, drawn by the user's taste; it may be taken up again at the next visit.
    """
    count, slots = len(known.taste), DAYS * 24
    activity = rng.lognormal(sigma=0.8, size=count)
    more = rng.multinomial(count * (VISITS_PER_USER - 1), activity / activity.sum())
    chances = np.tile(HOURS / HOURS.sum(), DAYS) / DAYS
    visits = [np.sort(rng.choice(slots, min(1 + n, slots), replace=False, p=chances)) for n in more]
    user, slot = np.repeat(np.arange(count), list(map(len, visits))), np.concatenate(visits)
    start = START_US + slot * HOUR_US + rng.integers(0, HOUR_US - SHOWN * PAUSE * SECOND_US, len(slot))

    categories = len(ATTRIBUTES["category"])
    drawn = np.argmax(known.taste[user, :categories] + rng.gumbel(size=(len(user), categories)), axis=1)
    drawn[rng.random(len(user)) >= IN_NEED] = -1
    again = np.zeros(len(user), dtype=bool)
    again[1:] = (user[1:] == user[:-1]) & (np.diff(start) <= TAKEN_UP_DAYS * DAY_US)
    again &= rng.random(len(user)) < TAKEN_UP
    need = drawn[np.maximum.accumulate(np.where(again, 0, np.arange(len(user))))]
    names = np.array([*ATTRIBUTES["category"], None], dtype=object)  # -1 is the last
    visits = pa.table(
        {"user": user, "start": pa.array(start).cast(TIMESTAMP), "need": pa.array(names[need], pa.string())}
    )
    return visits.sort_by([("start", "ascending"), ("user", "ascending")]).combine_chunks()


def shown_chance(known: World, user: np.ndarray, day: np.ndarray, need: np.ndarray) -> np.ndarray:
    """Returns q of every item, float64 [V, N], for visits: user rows, days from START, needs as in `click_chance`."""
    age = day[:, None] - (known.listed - START_US) / DAY_US
    listed = age >= 0
    log_appeal = np.where(listed, known.appeal + NEW * np.exp(-age.clip(0) / NOVELTY_DAYS), -np.inf)
    appeal = np.exp(log_appeal)
    wanted = appeal * (known.look[:, 0] == need[:, None])
    wanted = np.where(wanted.sum(axis=1, keepdims=True) > 0, wanted, appeal)
    liked = PERSONAL_APPEAL * log_appeal
    for column in known.look.T:
        liked = liked + known.model[user][:, column]
    parts = (BROWSED, wanted), (POPULAR, appeal), (PERSONAL, np.exp(liked)), (EXPLORED, listed)
    return sum(share * part / part.sum(axis=1, keepdims=True) for share, part in parts)


def draw_impressions(known: World, visits: pa.Table, need: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Draws what visits show: visit, user, item (rows), timestamp, position, propensity; in order of visits.

    Args:
        known: the truth.
        visits: the table of `draw_visits`.
        need: of every visit, as in `click_chance`.
    """
    user, start = visits["user"].to_numpy(), visits["start"].cast(pa.int64()).to_numpy()
    day = (start - START_US) // DAY_US
    shown, propensity = [], []
    for today in range(DAYS):  # visits are in order of time
        rows = np.flatnonzero(day == today)
        chance = shown_chance(known, user[rows], day[rows], need[rows])
        with np.errstate(divide="ignore"):  # what is not listed
            keys = np.log(chance) + rng.gumbel(size=chance.shape)
        # Gumbel top-k draws one after the other without replacement, in proportion to chance (Kool et al. 2019).
        items = np.argsort(-keys, axis=1)[:, :SHOWN]
        chance = np.take_along_axis(chance, items, axis=1)
        before = np.cumsum(chance, axis=1) - chance
        shown.append(items)
        propensity.append(chance / (1 - before))
    pauses = rng.integers(2, PAUSE, (len(user), SHOWN)) * SECOND_US
    return pa.table(
        {
            "visit": np.repeat(np.arange(len(user)), SHOWN),
            "user": np.repeat(user, SHOWN),
            "item": np.concatenate(shown).ravel(),
            "timestamp": pa.array((start[:, None] + np.cumsum(pauses, axis=1)).ravel()).cast(TIMESTAMP),
            "position": pa.array(np.tile(np.arange(1, SHOWN + 1), len(user)), pa.int32()),
            "propensity": np.round(np.concatenate(propensity).ravel(), 6),
        }
    )
