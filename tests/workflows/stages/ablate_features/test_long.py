"""Second histories by semantic ID: what the stage features writes, and a toy where a taste of long ago decides."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.evaluation.clicks import auc
from models.ranking.settings import RankerSettings
from operators.columns import matrix_column
from operators.features.long_history import read_prefixes
from storage.run import RunDir
from tests.logs import write_log
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ablate_features import scores
from workflows.stages.ablate_features.variants import VARIANTS, variant_prefixes
from workflows.stages.features import stage as features

TASTES, OF_EACH, FILLERS, USERS, PERIOD, DECIDED = 6, 10, 20, 200, 100, 10
ITEMS = TASTES * OF_EACH + FILLERS
LENGTH = 4
SMALL = {"rows": 256}


def write_toy(run: RunDir) -> None:
    """Users like three items of their taste, then six of no taste, and are shown others that they like by their taste.

    Each user lives after the others, so that those of the test split are new; what is shown at once is no history.
    """
    random = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        taste = random.integers(TASTES)
        early = taste * OF_EACH + random.permutation(OF_EACH // 2)[:3]
        filler = TASTES * OF_EACH + random.permutation(FILLERS)[:6]
        others = (taste + random.integers(1, TASTES, 4)) % TASTES
        shown = np.repeat([taste, *others], [4, 1, 1, 1, 1]) * OF_EACH + OF_EACH // 2
        shown = shown + np.concatenate([random.permutation(OF_EACH // 2)[:4], random.integers(0, OF_EACH // 2, 4)])
        rows += [(user, item, time, 1) for time, item in enumerate([*early, *filler])]
        rows += [(user, item, DECIDED, int(item // OF_EACH == taste)) for item in np.unique(shown)]
    user, item, time, label = np.array(rows).T
    ids = np.array([f"item {n}" for n in range(ITEMS)])
    when = pa.array(user * PERIOD + time, pa.timestamp("us", tz="UTC"))
    log = {"user_id": [f"user {n}" for n in user], "item_id": ids[item], "timestamp": when}
    codes = np.stack([np.arange(ITEMS) // OF_EACH, np.arange(ITEMS) % OF_EACH, np.full(ITEMS, -1)], axis=1)
    text = pa.nulls(ITEMS, pa.string())
    items = {"item_id": ids, "title": text, "description": text, "caption": text}
    attributes = pa.nulls(ITEMS, pa.map_(pa.string(), pa.string()))
    items |= {"interests": pa.nulls(ITEMS, pa.list_(pa.string())), "attributes": attributes}
    run.write_table(pa.table({"item_id": ids, "embedding": matrix_column(np.zeros((ITEMS, 2)))}), "embeddings")
    run.write_table(pa.table({"item_id": ids, "codes": matrix_column(codes)}), "sids")
    run.write_table(pa.table(items), "items")
    write_log(run, pa.table({**log, "label": label.astype(np.float32)}), partitions=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(str(tmp_path_factory.mktemp("long")))
    write_toy(run)
    context = Context(run, run.root, 0, "f", log=lambda line: None, progress=lambda done, total: None)
    stage("features").run(features.Config(history=5, long_history=LENGTH), context)
    return run


def test_a_variant_computes_what_the_features_hold(run: RunDir) -> None:
    rows = scores.read_examples(run, run.root, users=10)
    prefixes = read_prefixes(run)
    assert prefixes.shape == (ITEMS, 2)
    found = scores.with_long(rows, run, prefixes, length=LENGTH)
    dealt = scores.with_long(rows, run, variant_prefixes(prefixes, VARIANTS["long-shuffled"], seed=1), length=LENGTH)
    for name in ("train", "valid", "test"):
        stored, again, other = (pl.DataFrame(getattr(each, name)) for each in (rows, found, dealt))
        assert again.select(stored.columns).equals(stored)
        assert not other.select(stored.columns).equals(stored)


def test_semantic_ids_are_dealt_out_whole(run: RunDir) -> None:
    prefixes = read_prefixes(run)
    shuffled, other = (variant_prefixes(prefixes, VARIANTS["long-shuffled"], seed=seed) for seed in (0, 1))
    assert sorted(shuffled.tolist()) == sorted(prefixes.tolist())
    assert not np.array_equal(shuffled, other)
    assert variant_prefixes(prefixes, VARIANTS["long"], seed=0) is prefixes


def test_a_taste_of_long_ago_is_learnt_from_the_second_history_alone(run: RunDir) -> None:
    rows = scores.read_examples(run, run.root, users=10)
    settings = RankerSettings(
        epochs=6, batch_size=64, embedding_lr=0.05, dense_lr=0.01, target_attention=True, tables={"item": SMALL}
    )
    decided = rows.test["timestamp"].cast(pa.int64()).to_numpy() % PERIOD == DECIDED
    label = rows.test["label"].to_numpy()[decided]
    found = {
        name: auc(label, np.array(scores.score(settings, rows, run, run.root, name, 0)["test"])[decided])
        for name in ("id", "long", "long-shuffled")
    }
    assert found["long"] > 0.85, found
    assert found["id"] < 0.7, found
    assert found["long"] - found["long-shuffled"] > 0.15, found  # which lists some likes of long ago by chance
