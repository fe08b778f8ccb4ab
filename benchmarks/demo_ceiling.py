"""What histories alone could tell of the next item in the embedded catalogue: a ceiling for its recommenders.

python -m benchmarks.demo_ceiling --data CATALOGUE --out FILE [--json]

`truth` knows all that caused a choice: also the need of a visit before the visit's first click. `histories` knows the
recipe, and of a user what they have clicked on and when: it keeps a probability of every pair of archetypes and every
need, and updates it click by click (a hidden Markov model: a need stays within a visit, and in half of the cases up to
the next). What a user likes beside the archetypes, the error of the shop's old model and visits without a click are
left out of it, so a little more could be known. `gap_closed` is its share of the gap between the NDCG@10 of popularity
and of the truth, on the test split by time, for items that are new to the user. It takes a minute on one core.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from benchmarks.machine import machine
from models.common.jagged import sliced
from models.common.recommender import best, concatenate, recommend_blocks
from models.evaluation.lists import CUTS
from models.recommenders.popularity import MostPopular
from operators.log.encoding import encode
from operators.log.sequences import queries, training_sequences
from operators.log.split import SplitTime, split_numbers
from storage import files
from storage.errors import UserError
from storage.hashing import hash_ids, hash_order
from workflows.catalogs.synthetic import behaviour, visits
from workflows.catalogs.synthetic.behaviour import DAY_US, LATER, START_US, World
from workflows.catalogs.synthetic.sample import stream
from workflows.catalogs.synthetic.truth import true_lists
from workflows.stages.evaluate.recommenders import judge
from workflows.stages.ingest.events import canonical_events, clean_events

PAIRS = list(itertools.product(range(behaviour.ARCHETYPES), repeat=2))
NEEDS = np.array([*range(len(behaviour.ATTRIBUTES["category"])), -1])
STATES = len(PAIRS), len(NEEDS)
VISIT_US = visits.SHOWN * visits.PAUSE * behaviour.SECOND_US  # longer pauses are between visits


class Histories:
    """The probability of every item, given the clicks of a user up to then."""

    def __init__(self, items: pa.Table, seed: int) -> None:
        archetypes, strengths = behaviour.draw_archetypes(stream(seed, "users"))
        first, second = (archetypes[list(column)] for column in zip(*PAIRS, strict=True))
        tastes = [strengths * ((1 - share) * first + share * second) for share in behaviour.SECOND]
        columns = {
            f"{kind}{name}": values
            for kind, taste in (("", tastes[0]), (LATER, tastes[1]), (behaviour.MODEL, tastes[0]))
            for name, values in zip(behaviour.TASTE_COLUMNS, taste.T, strict=True)
        }
        self._known: World = behaviour.world(pa.table(columns), items)
        odds = np.exp(tastes[0][:, NEEDS[:-1]])
        odds *= visits.IN_NEED / odds.sum(1, keepdims=True)
        self._fresh = np.column_stack([odds, np.full(len(PAIRS), 1 - visits.IN_NEED)])  # P(need | pair)

    def predictions(self, item: np.ndarray, time: np.ndarray) -> Iterator[np.ndarray]:
        """Yields before each click of one user, in order of time, how likely every item is, float64 [N]."""
        belief, last = self._fresh / len(PAIRS), int(time[0])
        for clicked, now in zip(item, time, strict=True):
            if now - last > VISIT_US:
                anew = belief.sum(1, keepdims=True) * self._fresh
                soon = now - last <= visits.TAKEN_UP_DAYS * DAY_US
                belief = visits.TAKEN_UP * belief + (1 - visits.TAKEN_UP) * anew if soon else anew
            chances = self._chances(int((now - START_US) // DAY_US))
            yield np.tensordot(belief, chances, 2)
            belief = belief * chances[:, :, clicked]
            belief, last = belief / belief.sum(), now

    @functools.cache  # noqa: B019 - one object, a day's table each
    def _chances(self, day: int) -> np.ndarray:
        """P(next choice) on a day, float64 [pairs, needs, N]."""
        pair, need = np.repeat(np.arange(STATES[0]), STATES[1]), np.tile(NEEDS, STATES[0])
        shown = visits.shown_chance(self._known, pair, np.full(len(pair), day), need)
        noon, middle = np.array(START_US + (day + 0.5) * DAY_US), np.array((1 + visits.SHOWN) / 2)
        every = np.arange(shown.shape[1])
        chance = shown * behaviour.click_chance(self._known, pair[:, None], every, noon, middle, need[:, None])
        return (chance / chance.sum(1, keepdims=True)).reshape(*STATES, -1)


def measure(catalog: str) -> dict[str, Any]:
    """Returns the scores of popularity, of histories and of the truth on the test split of a catalogue."""
    seed = int(re.findall(r"seed (\d+)", files.read_json(files.join(catalog, "catalog.json"))["source"])[0])
    items = files.read_table(files.join(catalog, "truth_items.parquet"))
    items = items.take(hash_order(items["item_id"].to_pylist()))
    uri = files.join(catalog, "interactions.parquet")
    raw = pl.DataFrame(files.read_table(uri))
    kept, _ = clean_events(canonical_events(raw, uri), hash_ids(items["item_id"].to_pylist()), raw, [])
    log = encode(kept.to_arrow(compat_level=pl.CompatLevel.oldest()), items["item_id"].cast(pa.large_string()))
    numbers = split_numbers(SplitTime(), log.events)
    test = queries(log.events, numbers, "test", history=1, repeats=False)
    time = cast("np.ndarray", test.time)
    positives = np.bincount(training_sequences(log.events, numbers).values, minlength=items.num_rows)
    lists = {
        "popularity": recommend_blocks(MostPopular(torch.from_numpy(positives)), test.histories, k=20, banned=test.seen)
    }
    histories, clicks = Histories(items, seed), log.events.take(log.events.label > 0)
    found = []
    for row, (user, now) in enumerate(zip(test.user, time, strict=True)):
        own = clicks.take((clicks.user == user) & (clicks.time <= now))
        *_, chance = histories.predictions(own.item, own.time)
        found.append(best(torch.from_numpy(chance[None]), k=max(CUTS), banned=sliced(test.seen, row, row + 1)))
    lists["histories"] = concatenate(found, k=max(CUTS))
    users = log.users.take(pa.array(test.user)).cast(pa.string())
    truth = true_lists(catalog, items["item_id"], users, time, k=max(CUTS), banned=test.seen)
    if truth is None:
        raise UserError(f"{catalog} has no truth: write it by `tesserec sample`.")
    lists["truth"] = truth
    cold = np.ones(items.num_rows, dtype=bool)
    cold[log.events.item[numbers == 0]] = False
    scores = judge(lists, test, positives, cold, chosen="histories", seed=0)
    return {name: scores[name] for name in (*lists, "gap_closed")}


def main() -> None:
    """Writes the scores as JSON and prints the shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = {"machine": machine(), **measure(given.data)}
    files.write_json(given.out, result)
    told = json.dumps(result) if given.json else f"gap closed by histories: {result['gap_closed']}"
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main()
