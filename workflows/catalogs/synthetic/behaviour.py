"""The users of the embedded catalogue: a known click model and a log drawn from it.

    P(click) = sigmoid(BIAS + taste . look + QUALITY quality + NOVELTY exp(-age / 5 days) + POSITION (position - 1))

Tastes depend on what can be *seen* (category, colour, pattern, material) and lie near a few archetypes, so that users
can be learnt from one another. Quality is a property of the item alone: it can be learnt from identifiers, not from
pixels. Stored numbers are rounded when drawn, so the stored tables reproduce the probabilities exactly.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa

from operators.columns import positions
from storage import files
from workflows.catalogs.canonical import TIMESTAMP
from workflows.catalogs.synthetic.drawing import CATEGORIES, COLOURS, MATERIALS, PATTERNS

DAYS = 90
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
SESSION = 8  # impressions of one visit, at positions 1 to 8
SESSIONS_PER_USER = 5

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "material": MATERIALS,
}
TASTE_COLUMNS = [f"{attribute}={value}" for attribute, values in ATTRIBUTES.items() for value in values]

# Strength of the taste for an attribute, and how many of its values an archetype likes and dislikes.
TASTES = {"category": (0.5, 2, 2), "colour": (1.3, 3, 3), "pattern": (0.9, 1, 1), "material": (0.3, 1, 1)}
ARCHETYPES = 6
OWN_TASTE = 0.2  # standard deviation of a user's tastes around the archetype
BIAS, QUALITY, NOVELTY, POSITION = -1.5, 0.3, 0.5, -0.06
NOVELTY_DAYS = 5.0

SHARE_FROM_START, SHARE_NEW = 0.55, 0.13  # shares of items listed at the start and in the last 14 days
HOURS = np.array([2, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 6, 7, 7, 6, 6, 6, 7, 8, 9, 10, 9, 7, 4], dtype=np.float64)
DAY_US, HOUR_US, SECOND_US = 86_400_000_000, 3_600_000_000, 1_000_000
START_US = int(START.timestamp()) * SECOND_US


def draw_items(item_ids: list[str], rng: np.random.Generator) -> pa.Table:
    """Draws the truth about items: a column per visual attribute, `clutter`, `quality` (standard normal), `first_seen`.

    Attributes are independent and balanced. Items listed before the start of the log have `first_seen` before it.
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
    columns["clutter"] = pa.array(rng.integers(0, 8, count), pa.int32())
    columns["quality"] = pa.array(np.round(rng.normal(size=count), 3))
    columns["first_seen"] = pa.array(START_US + rng.permutation(days) * DAY_US).cast(TIMESTAMP)
    return pa.table(columns)


def draw_users(user_ids: list[str], rng: np.random.Generator) -> pa.Table:
    """Draws the truth about users: `user_id` and the taste for every attribute value, in columns `attribute=value`."""
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
    count = len(user_ids)
    first, second = rng.integers(0, ARCHETYPES, (2, count))
    tastes = 0.75 * archetypes[first] + 0.25 * archetypes[second]
    tastes = strengths * (tastes + OWN_TASTE * rng.normal(size=tastes.shape))
    columns = {name: pa.array(values) for name, values in zip(TASTE_COLUMNS, np.round(tastes.T, 3), strict=True)}
    return pa.table({"user_id": pa.array(user_ids, pa.string()), **columns})


def click_probability(pairs: pa.Table, users: pa.Table, items: pa.Table) -> np.ndarray:
    """Returns P(click) of impressions, float64 [N], rounded to six decimals.

    Args:
        pairs: user_id, item_id, timestamp (UTC), position (from 1); any pairs of users and items.
        users: the table of `draw_users`.
        items: the table of `draw_items`.

    Raises:
        ValueError: a user or an item is not in the tables.
    """
    user, item = (positions(pairs[key], known[key]) for key, known in (("user_id", users), ("item_id", items)))
    if unknown := int(((user < 0) | (item < 0)).sum()):
        raise ValueError(f"{unknown} rows name a user or an item that is not in the truth tables")
    tastes = np.column_stack([users[name].to_numpy() for name in TASTE_COLUMNS])
    logit = np.full(pairs.num_rows, BIAS)
    for attribute in ATTRIBUTES:
        columns = [f"{attribute}={value}" for value in items[attribute].to_pylist()]
        logit += tastes[user, positions(columns, TASTE_COLUMNS)[item]]
    seen = items["first_seen"].cast(pa.int64()).to_numpy()[item]
    age = (pairs["timestamp"].cast(TIMESTAMP).cast(pa.int64()).to_numpy() - seen) / DAY_US
    logit += QUALITY * items["quality"].to_numpy()[item] + NOVELTY * np.exp(-np.maximum(age, 0) / NOVELTY_DAYS)
    logit += POSITION * (pairs["position"].to_numpy() - 1)
    return np.round(1 / (1 + np.exp(-logit)), 6)


def pair_probability(directory: str, pairs: pa.Table) -> np.ndarray:
    """Returns P(click) of any user x item pairs from the truth in a sample catalogue's folder; only for evaluation.

    `pairs` and the result are those of `click_probability`.
    """
    users, items = (files.read_table(files.join(directory, f"truth_{name}.parquet")) for name in ("users", "items"))
    return click_probability(pairs, users, items)


def true_probability(catalog: str, test: pa.Table) -> np.ndarray | None:
    """Returns the probability that generated each label of a log, float64 [M]; None without a file truth.parquet.

    None, too, where it lacks a row: sampled negatives have no true probability.
    """
    uri = files.join(catalog, "truth.parquet")
    if not files.exists(uri):
        return None
    keys = ["user_id", "item_id", "timestamp"]
    truth = files.read_table(uri, columns=[*keys, "probability"])
    truth = truth.set_column(2, "timestamp", truth["timestamp"].cast(test["timestamp"].type))
    events = test.select(keys).append_column("position", pa.array(np.arange(test.num_rows)))
    joined = events.join(truth, keys, join_type="inner").sort_by("position")
    if not np.array_equal(joined["position"].to_numpy(), np.arange(test.num_rows)):
        return None
    return joined["probability"].to_numpy().astype(np.float64)


def draw_impressions(users: pa.Table, items: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Draws sessions of distinct items over 90 days: user_id, item_id, timestamp, position; about 40 rows per user.

    Exposure mixes chance with popularity (loosely correlated with quality) and favours new items; it does not depend
    on taste. The activity of users is long-tailed; every user has at least one session.
    """
    count = users.num_rows
    activity = rng.lognormal(sigma=0.8, size=count)
    visitors = rng.choice(count, count * (SESSIONS_PER_USER - 1), p=activity / activity.sum())
    visitors = rng.permutation(np.concatenate([np.arange(count), visitors]))
    days = np.sort(rng.integers(0, DAYS, len(visitors)))

    quality = items["quality"].to_numpy()
    popularity = np.exp(0.5 * quality + 0.8 * rng.normal(size=items.num_rows))
    exposure = np.log(0.5 + 0.5 * popularity / popularity.mean())
    listed = (items["first_seen"].cast(pa.int64()).to_numpy() - START_US) / DAY_US
    shown = []
    for day in range(DAYS):
        weights = np.where(listed <= day, exposure + np.exp(-(day - listed).clip(0) / NOVELTY_DAYS), -np.inf)
        # Gumbel top-k draws without replacement in proportion to exp(weights) (Kool et al. 2019).
        keys = weights + rng.gumbel(size=(int((days == day).sum()), items.num_rows))
        shown.append(np.argsort(-keys, axis=1)[:, :SESSION])

    start = days * DAY_US + rng.choice(24, len(days), p=HOURS / HOURS.sum()) * HOUR_US
    start += rng.integers(0, HOUR_US, len(days))
    pauses = rng.integers(2, 20, (len(days), SESSION)) * SECOND_US
    timestamps = START_US + start[:, None] + np.cumsum(pauses, axis=1)
    impressions = pa.table(
        {
            "user_id": users["user_id"].take(pa.array(np.repeat(visitors, SESSION))),
            "item_id": items["item_id"].take(pa.array(np.concatenate(shown).ravel())),
            "timestamp": pa.array(timestamps.ravel()).cast(TIMESTAMP),
            "position": pa.array(np.tile(np.arange(1, SESSION + 1), len(days)), pa.int32()),
        }
    )
    return impressions.sort_by([("timestamp", "ascending"), ("user_id", "ascending")]).combine_chunks()


def draw_clicks(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws clicks, float32 [N], 1 or 0."""
    return (rng.random(len(probability)) < probability).astype(np.float32)
