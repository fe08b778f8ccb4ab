"""What only evaluation may ask of the embedded catalogue: the probabilities behind its log."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.common.jagged import Jagged, gather
from models.common.recommender import BLOCK, Recommended, best, concatenate
from operators.columns import Ids, positions
from storage import files
from workflows.catalogs.synthetic.behaviour import (
    ATTRIBUTES,
    DAY_US,
    START_US,
    click_chance,
    click_probability,
    need_rows,
    world,
)
from workflows.catalogs.synthetic.visits import shown_chance


def pair_probability(directory: str, pairs: pa.Table) -> np.ndarray:
    """Returns P(click) of any user x item pairs from the truth in a sample catalogue's folder.

    `pairs` and the result are those of `click_probability`.
    """
    return click_probability(pairs, *(_read(directory, name) for name in ("users", "items")))


def true_attributes(uri: str, item_ids: Ids) -> pa.Table:
    """Returns what the pictures of these items show, a column for each of `ATTRIBUTES`; null where nothing is known.

    Args:
        uri: of the true attributes of items.
        item_ids: N ids.
    """
    truth = files.read_table(uri)
    at = positions(item_ids, truth["item_id"])
    return truth.take(pa.array(at, mask=at < 0)).select(list(ATTRIBUTES))


def true_probability(catalog: str, test: pa.Table) -> np.ndarray | None:
    """Returns the probability that generated each label of a log, float64 [M]; None without a file truth.parquet.

    None, too, where it lacks a row: sampled negatives have no true probability.
    """
    uri = files.join(catalog, "truth.parquet")
    if not files.exists(uri):
        return None
    keys = ["user_id", "item_id", "timestamp"]
    rows = files.dataset(uri)
    users = pc.unique(test["user_id"]).cast(rows.schema.field("user_id").type)
    truth = rows.to_table(columns=[*keys, "probability"], filter=pc.field("user_id").isin(users))
    truth = truth.set_column(2, "timestamp", truth["timestamp"].cast(test["timestamp"].type))
    events = test.select(keys).append_column("position", pa.array(np.arange(test.num_rows)))
    joined = events.join(truth, keys, join_type="inner").sort_by("position")
    if not np.array_equal(joined["position"].to_numpy(), np.arange(test.num_rows)):
        return None
    return joined["probability"].to_numpy().astype(np.float64)


def true_lists(
    catalog: str,
    item_ids: pa.ChunkedArray,
    user_ids: pa.Array,
    time: np.ndarray | None,
    *,
    k: int,
    banned: Jagged | None,
) -> Recommended | None:
    """Returns the items that users most likely chose at these moments of the log, by all that caused their choice.

    The chance that an item is the next choice is in proportion to the chance that the visit shows it and that it is
    clicked on in this place. No list has a higher NDCG, but by luck.

    Args:
        catalog: URI of a catalogue.
        item_ids: of N rows.
        user_ids: of Q queries.
        time: of an event of theirs, int64 [Q], microseconds; None where it is not known.
        k: length of the lists.
        banned: item rows that each user must not get.

    Returns:
        None where the catalogue has no truth, or lacks a moment, or it is not known.
    """
    if time is None or not files.exists(files.join(catalog, "truth_visits.parquet")):
        return None
    columns = ["user_id", "item_id", "timestamp", "visit", "position"]
    truth = files.read_table(files.join(catalog, "truth.parquet"), columns=columns)
    keys = ["user_id", "timestamp"]
    asked = pa.table({"user_id": user_ids, "timestamp": pa.array(time).cast(truth["timestamp"].type)})
    asked = asked.append_column("query", pa.array(np.arange(len(time))))
    asked = asked.join(truth.select([*keys, "visit", "position"]), keys, join_type="inner").sort_by("query")
    if not np.array_equal(asked["query"].to_numpy(), np.arange(len(time))):
        return None
    users, items, visits = (_read(catalog, name) for name in ("users", "items", "visits"))
    known, at = world(users, items), positions(item_ids, items["item_id"])
    user, position = positions(asked["user_id"], users["user_id"]), asked["position"].to_numpy()
    visit = visits.take(asked["visit"])
    need, start = need_rows(visit["need"].to_pylist()), visit["start"].cast(pa.int64()).to_numpy()
    before = asked.select(["query", "visit", "position"]).join(
        truth.select(["item_id", "visit", "position"]), "visit", join_type="inner", right_suffix="_shown"
    )
    before = before.filter(pc.less(before["position_shown"], before["position"])).sort_by("query")
    shown_to, shown = before["query"].to_numpy(), positions(before["item_id"], items["item_id"])
    every, found = np.arange(items.num_rows), []
    for rows in torch.arange(len(time)).split(BLOCK):
        part = rows.numpy()
        chance = shown_chance(known, user[part], (start[part] - START_US) // DAY_US, need[part])
        moment = (column[part, None] for column in (time, position, need))
        chance *= click_chance(known, user[part, None], every, *moment)
        own = slice(*np.searchsorted(shown_to, [part[0], part[-1] + 1]))
        chance[shown_to[own] - part[0], shown[own]] = 0  # a visit does not show an item again
        scores = torch.from_numpy(np.where((at < 0) | (chance[:, at] == 0), -np.inf, chance[:, at]))
        found.append(best(scores, k=k, banned=None if banned is None else gather(banned, rows)))
    return concatenate(found, k=k)


def _read(catalog: str, name: str) -> pa.Table:
    return files.read_table(files.join(catalog, f"truth_{name}.parquet"))
