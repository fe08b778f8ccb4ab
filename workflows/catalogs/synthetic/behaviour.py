"""The items and users of the embedded catalogue, and how likely a user is to click on what is shown.

    P(click) = sigmoid(BIAS + taste(t) . look + need + QUALITY quality + NOVELTY exp(-age / 5 days)
                       + POSITION (position - 1))

Tastes depend on what can be *seen* (category, colour, pattern, material) and lie near a few archetypes, so that users
can be learnt from one another; they drift from one archetype to another over the log. A need is for a category and
lasts a visit or a few (see `visits`): NEEDED for items of it, OTHER for the rest, 0 for a visit without one. Quality is
a property of the item alone: it can be learnt from identifiers, not from pixels. Stored numbers are rounded when drawn,
so the stored tables reproduce the probabilities exactly.

The parameters are those of a shop as one would guess it, with the reasons in docs/decisions/0007-generated-demo.md.
None was chosen by what a model does on the result.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from operators.columns import positions
from workflows.catalogs.canonical import TIMESTAMP
from workflows.catalogs.synthetic.drawing import CATEGORIES, COLOURS, MATERIALS, PATTERNS

DAYS, WEEK = 90, 7
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "material": MATERIALS,
}
TASTE_COLUMNS = [f"{attribute}={value}" for attribute, values in ATTRIBUTES.items() for value in values]
LATER, MODEL = "later ", "model "  # before the name of a taste: at the end of the log, and as an old model has it

# Strength of the taste for an attribute, and how many of its values an archetype likes and dislikes.
TASTES = {"category": (0.5, 2, 2), "colour": (1.3, 3, 3), "pattern": (0.9, 1, 1), "material": (0.3, 1, 1)}
ARCHETYPES = 6
OWN_TASTE = 0.2  # standard deviation of a user's tastes around the archetypes
SECOND = (0.1, 0.4)  # share of a user's second archetype on the first and on the last day
MODEL_ERROR = 0.5  # standard deviation of what an old model takes a user's tastes for, around those of the first day
BIAS, QUALITY, NOVELTY, POSITION = -2.0, 0.3, 0.5, -0.06
NEEDED, OTHER = 1.0, -1.0
NOVELTY_DAYS = 5.0
APPEAL = 1.3  # standard deviation of the log of an item's appeal, which its exposure follows

SHARE_FROM_START, SHARE_NEW = 0.55, 0.13  # shares of items listed at the start and in the last 14 days
DAY_US, SECOND_US = 86_400_000_000, 1_000_000
START_US = int(START.timestamp()) * SECOND_US


class World(NamedTuple):
    """The truth about U users and N items in numbers; L looks are the values of all attributes."""

    taste: np.ndarray  # float64 [U, L], on the first day
    drift: np.ndarray  # float64 [U, L], from then to the last day
    model: np.ndarray  # float64 [U, L], the tastes as an old model has them
    look: np.ndarray  # int64 [N, 4], the columns that an item's attributes are in
    quality: np.ndarray  # float64 [N]
    appeal: np.ndarray  # float64 [N], the log
    listed: np.ndarray  # int64 [N], microseconds


def draw_items(item_ids: list[str], rng: np.random.Generator) -> pa.Table:
    """Draws the truth about items: a column per visual attribute, `clutter`, `quality`, `appeal`, `first_seen`.

    Attributes are independent and balanced. Items listed before the start of the log have `first_seen` before it; the
    others come in weekly deliveries. Quality is standard normal, and appeal loosely correlated with it.
    """
    count = len(item_ids)
    columns: dict[str, pa.Array] = {"item_id": pa.array(item_ids, pa.string())}
    for attribute, values in ATTRIBUTES.items():
        codes = rng.permutation(np.arange(count) % len(values))
        columns[attribute] = pa.array([values[code] for code in codes], pa.string())
    start, new = round(SHARE_FROM_START * count), round(SHARE_NEW * count)
    days = np.concatenate(
        [
            rng.integers(-180, 1, start),
            rng.integers(1, DAYS - 14, count - start - new),
            rng.integers(DAYS - 14, DAYS - 1, new),
        ]
    )
    days = np.where(days > 0, days - days % WEEK, days)
    columns["clutter"] = pa.array(rng.integers(0, 8, count), pa.int32())
    quality = np.round(rng.normal(size=count), 3)
    columns["quality"] = pa.array(quality)
    columns["first_seen"] = pa.array(START_US + rng.permutation(days) * DAY_US).cast(TIMESTAMP)
    appeal = APPEAL * (0.4 * quality + np.sqrt(1 - 0.4**2) * rng.normal(size=count))
    columns["appeal"] = pa.array(np.round(appeal, 3))
    return pa.table(columns)


def draw_archetypes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws what archetypes like, float64 [ARCHETYPES, L], and returns it with the strength of every taste, [L]."""
    archetypes = np.zeros((ARCHETYPES, len(TASTE_COLUMNS)))
    strengths, offset = np.empty(len(TASTE_COLUMNS)), 0
    for attribute, values in ATTRIBUTES.items():
        strength, liked, disliked = TASTES[attribute]
        for archetype in archetypes:
            order = offset + rng.permutation(len(values))
            archetype[order[:liked]], archetype[order[liked : liked + disliked]] = 1.5, -1.0
        strengths[offset : offset + len(values)] = strength
        offset += len(values)
    archetypes -= 0.2 * archetypes.mean(axis=0)  # otherwise popularity alone would predict taste
    return archetypes, strengths


def draw_users(user_ids: list[str], rng: np.random.Generator) -> pa.Table:
    """Draws the truth about users: `user_id` and, for every attribute value, three columns.

    `attribute=value` is the taste on the first day, LATER + that the one on the last day, and MODEL + that what an old
    model takes it for.
    """
    archetypes, strengths = draw_archetypes(rng)
    count = len(user_ids)
    first, second = rng.integers(0, ARCHETYPES, (2, count))
    own, error = rng.normal(size=(2, count, len(strengths)))
    begin, end = (
        strengths * ((1 - share) * archetypes[first] + share * archetypes[second] + OWN_TASTE * own) for share in SECOND
    )
    model = begin + strengths * MODEL_ERROR * error
    columns = {
        f"{kind}{name}": pa.array(np.round(values, 3))
        for kind, tastes in (("", begin), (LATER, end), (MODEL, model))
        for name, values in zip(TASTE_COLUMNS, tastes.T, strict=True)
    }
    return pa.table({"user_id": pa.array(user_ids, pa.string()), **columns})


def world(users: pa.Table, items: pa.Table) -> World:
    """Returns the tables of `draw_users` and `draw_items` in numbers, in their order."""
    begin, end, model = (
        np.column_stack([users[f"{kind}{name}"].to_numpy() for name in TASTE_COLUMNS]) for kind in ("", LATER, MODEL)
    )
    look = [positions([f"{name}={value}" for value in items[name].to_pylist()], TASTE_COLUMNS) for name in ATTRIBUTES]
    return World(
        begin,
        end - begin,
        model,
        np.column_stack(look),
        items["quality"].to_numpy(),
        items["appeal"].to_numpy(),
        items["first_seen"].cast(pa.int64()).to_numpy(),
    )


def click_chance(
    known: World, user: np.ndarray, item: np.ndarray, time: np.ndarray, position: np.ndarray, need: np.ndarray
) -> np.ndarray:
    """Returns P(click), float64, of arrays that broadcast against each other.

    Args:
        known: the truth.
        user, item: rows of it; items along the last axis.
        time: microseconds.
        position: from 1.
        need: row of TASTE_COLUMNS, -1 for none.
    """
    passed = np.clip((time - START_US) / (DAYS * DAY_US), 0, 1)
    logit = BIAS + QUALITY * known.quality[item]
    for column in known.look[item].T:
        logit = logit + known.taste[user, column] + passed * known.drift[user, column]
    wanted = known.look[item][..., 0] == need
    logit = logit + np.where(need < 0, 0.0, np.where(wanted, NEEDED, OTHER))
    age = np.maximum(time - known.listed[item], 0) / DAY_US
    logit = logit + NOVELTY * np.exp(-age / NOVELTY_DAYS) + POSITION * (position - 1)
    return 1 / (1 + np.exp(-logit))


def click_probability(pairs: pa.Table, users: pa.Table, items: pa.Table) -> np.ndarray:
    """Returns P(click) of impressions, float64 [N], rounded to six decimals.

    Args:
        pairs: user_id, item_id, timestamp (UTC), position (from 1) and, unless none of them has one, need (a category
            or null); any pairs of users and items.
        users: the table of `draw_users`.
        items: the table of `draw_items`.

    Raises:
        ValueError: a user or an item is not in the tables.
    """
    user, item = (positions(pairs[key], known[key]) for key, known in (("user_id", users), ("item_id", items)))
    if unknown := int(((user < 0) | (item < 0)).sum()):
        raise ValueError(f"{unknown} rows name a user or an item that is not in the truth tables")
    needs = pairs["need"].to_pylist() if "need" in pairs.column_names else [None] * pairs.num_rows
    time = pairs["timestamp"].cast(TIMESTAMP).cast(pa.int64()).to_numpy()
    chance = click_chance(world(users, items), user, item, time, pairs["position"].to_numpy(), need_rows(needs))
    return np.round(chance, 6)


def need_rows(needs: list[str | None]) -> np.ndarray:
    """Returns the row of TASTE_COLUMNS of every category, -1 for None."""
    return positions([f"category={need}" for need in needs], TASTE_COLUMNS)


def draw_clicks(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws clicks, float32 [N], 1 or 0."""
    return (rng.random(len(probability)) < probability).astype(np.float32)
