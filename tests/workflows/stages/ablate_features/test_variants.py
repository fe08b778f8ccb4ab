"""The arms of the evidence: what each is told, what the truth is asked, and what comes out of a small comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.ranking.settings import RankerSettings
from operators.features.tokens import NULL_ID, token_hashes
from storage.errors import UserError
from storage.run import RunDir
from tests.models.workers import on_ranks
from workflows.catalogs.synthetic.sample import write_sample
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages import features, ingest
from workflows.stages.ablate_features import scores
from workflows.stages.ablate_features import stage as ablate_features
from workflows.stages.ablate_features.variants import ARMS, arm_items, arm_settings, told_nothing

ARMS_RUN, SEEDS = ("id", "image", "truth", "shuffled"), (0, 1)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run of the embedded catalogue up to features, whose captions are the true colours."""
    folder = tmp_path_factory.mktemp("arms")
    catalog = folder / "catalog"
    write_sample(str(catalog), items=60, users=150, seed=1)
    said: list[str] = []
    context = Context(RunDir(str(folder / "run")), str(catalog), 0, "f", said.append, lambda done, total: None)
    stage("ingest").run(ingest.Config(), context)
    colours = dict(pl.read_parquet(catalog / "truth_items.parquet").select("item_id", "colour").iter_rows())
    items = context.run.read_table("catalog", "items").select(["item_id", "title", "description"])
    ids = items["item_id"].to_pylist()
    captions = pa.array([colours.get(item) and f"all {colours[item]}" for item in ids], pa.string())
    interests = pa.nulls(len(ids), pa.list_(pa.string()))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(ids) * 4, np.float32)), 4)
    codes = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(len(ids) * 2, dtype=np.int32)), 2)
    interpreted = items.append_column("caption", captions).append_column("interests", interests)
    pictures = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32).tolist()
    pictures[::7] = [None] * len(pictures[::7])
    pictures = pa.array(pictures, pa.list_(pa.float32(), 4))
    context.run.write_table(interpreted.append_column("image_vector", pictures), "items")
    context.run.write_table(pa.table({"item_id": ids, "embedding": vectors}), "embeddings")
    context.run.write_table(pa.table({"item_id": ids, "codes": codes}), "sids")
    stage("features").run(features.Config(), context)
    return context


def captions_of(context: Context, name: str, seed: int = 0) -> list[list[int]]:
    items = context.run.read_table("features", "items")
    return arm_items(items, ARMS[name], context.run, context.catalog, seed=seed)["caption"].to_pylist()


def test_controls_keep_the_form_of_captions_and_lose_what_they_say(context: Context) -> None:
    captions = captions_of(context, "caption")
    assert captions == context.run.read_table("features", "items")["caption"].to_pylist()
    assert captions_of(context, "null") == [[NULL_ID]] * len(captions)
    shuffled, random = captions_of(context, "shuffled"), captions_of(context, "random")
    assert shuffled != captions
    assert sorted(shuffled) == sorted(captions)
    assert [len(tokens) for tokens in random] == [len(tokens) for tokens in captions]
    assert {t for tokens in random for t in tokens} <= {t for tokens in captions for t in tokens}
    assert random != captions
    for name in ("shuffled", "random"):
        assert captions_of(context, name) == captions_of(context, name)
        assert captions_of(context, name) != captions_of(context, name, seed=1)


def test_the_gate_takes_the_thinnest_items_first(context: Context) -> None:
    run = context.run
    items = pl.from_arrow(run.read_table("items", columns=["item_id", "title", "description"]))
    length = pl.col("title").fill_null("").str.len_chars() + pl.col("description").fill_null("").str.len_chars()
    lengths = dict(items.select("item_id", length).iter_rows())
    ids = run.read_table("features", "items")["item_id"].to_pylist()
    taken = []
    for name in ("caption-25", "caption-50", "caption-75"):
        kept = [captions != [NULL_ID] for captions in captions_of(context, name)]
        known = [captions != [NULL_ID] for captions in captions_of(context, "caption")]
        assert all(not k or c for k, c in zip(kept, known, strict=True))
        taken.append({item for item, k in zip(ids, kept, strict=True) if k})
        rest = [lengths[item] for item, k, c in zip(ids, kept, known, strict=True) if c and not k]
        assert max(lengths[item] for item in taken[-1]) <= min(rest)
    assert taken[0] < taken[1] < taken[2]


def test_an_arm_whose_reading_no_item_has_is_known(context: Context, tmp_path: Path) -> None:
    items = context.run.read_table("features", "items")
    assert not any(told_nothing(arm, items, context.run) for arm in ARMS.values())
    none = pa.array([[NULL_ID]] * len(items), pa.list_(pa.int64()))
    bare = items.set_column(items.schema.get_field_index("caption"), "caption", none)
    silent = {name for name, arm in ARMS.items() if told_nothing(arm, bare, context.run)}
    assert silent == {name for name, arm in ARMS.items() if "caption" in arm.bags} - {"truth"}
    other = RunDir(str(tmp_path))
    other.write_table(pa.table({"item_id": ["a"], "image_vector": pa.nulls(1, pa.list_(pa.float32(), 4))}), "items")
    assert told_nothing(ARMS["image"], items, other)


def test_an_arm_reads_ids_and_what_its_name_says() -> None:
    settings = RankerSettings()
    for name, bags in (("id", set()), ("caption+sid", {"caption", "sid"}), ("title", {"title"}), ("image", set())):
        arm = arm_settings(settings, ARMS[name])
        config = arm.ranker({"hash": {}, "dense": [], "history": 5}, 4)
        assert set(config.tables) == {"user", "item"} | bags
        assert bool(config.content_dim) is (name == "image")


def test_the_truth_is_what_can_be_seen_and_not_told_everywhere(context: Context, tmp_path: Path) -> None:
    truth = pl.read_parquet(Path(context.catalog) / "truth_items.parquet").row(0, named=True)
    ids = context.run.read_table("features", "items")["item_id"].to_pylist()
    seen = [f"{name}={truth[name]}" for name in ("category", "colour", "pattern", "material")]
    assert captions_of(context, "truth")[ids.index(truth["item_id"])] == token_hashes(seen).tolist()
    items = context.run.read_table("features", "items")
    with pytest.raises(UserError, match="take truth out"):
        arm_items(items, ARMS["truth"], context.run, str(tmp_path), seed=0)


def test_pairs_are_of_known_users_and_new_items_as_they_stood_after_training(context: Context) -> None:
    run = context.run
    train = run.read_table("features", "train")
    pairs = scores.true_pairs(run, context.catalog, train, users=20)
    assert pairs is not None
    ids = np.array(run.read_table("features", "items")["item_id"].to_pylist())
    rows = pairs.examples["row"].to_numpy().reshape(pairs.probability.shape)
    assert not set(ids[rows[0]]) & set(train["item_id"].to_pylist())
    assert (rows == rows[0]).all()
    users = pairs.examples["user"].to_numpy().reshape(rows.shape)
    assert set(users[:, 0]) <= set(train["user"].to_numpy()) - {NULL_ID}
    assert len(set(users[:, 0])) == 20
    assert pairs.examples["item_events"].to_numpy().max() == 0
    liked = pl.from_arrow(train).filter(pl.col("label") > 0).sort("timestamp")
    for place in range(20):
        past = liked.filter(pl.col("user") == users[place, 0])["row"].to_list()[-20:]
        assert pairs.examples["history"][place * rows.shape[1]].as_py() == past
    assert (pairs.probability > 0).all()
    assert pairs.probability.std() > 0.05


def test_without_new_items_or_their_truth_there_are_no_pairs(context: Context, tmp_path: Path) -> None:
    run = context.run
    train = run.read_table("features", "train")
    assert scores.true_pairs(run, str(tmp_path), train, users=5) is None
    items = run.read_table("features", "items", columns=["item_id", "item"])
    other = RunDir(str(tmp_path))
    other.write_table(items.set_column(1, "item", pa.array(np.full(len(items), 7))), "features", "items")
    other.write_json(run.read_json("features", "spec.json"), "features", "spec.json")
    assert scores.true_pairs(other, context.catalog, train, users=5) is None


def fit_small(rank: int, task: dict) -> list[int]:
    done: list[int] = []
    scores.fit_arms(task, lambda metrics: done.append(metrics["done"]))
    return done


def test_two_workers_share_the_arms_and_what_they_score_is_judged(context: Context, tmp_path: Path) -> None:
    settings = RankerSettings(epochs=4, batch_size=64, embedding_lr=0.05, tables={"caption": {"rows": 64}})
    jobs = [(arm, seed) for seed in SEEDS for arm in ARMS_RUN]
    scores = str(tmp_path / "scores")
    task = {
        "root": context.run.root,
        "catalog": context.catalog,
        "scores": scores,
        "settings": settings.model_dump(mode="json"),
        "jobs": jobs[:-1],  # an odd number
        "users": 20,
        "seed": 0,
    }
    first = on_ranks(fit_small, tmp_path, [(task,), ({**task, "jobs": jobs},)])
    assert first == [[[2, 4, 6, 7]] * 2, [[2, 4, 6, 8]] * 2]
    before = {path.name: path.stat().st_mtime_ns for path in Path(scores).iterdir()}
    assert len(before) == len(jobs)

    found = scores.judge(context, scores, ARMS_RUN, SEEDS, users=20, draws=20)
    assert set(found) == {"test", "test_cold", "truth_cold", "gate_curve"}
    arms = found["truth_cold"]["arms"]
    assert set(arms) == set(ARMS_RUN)
    assert arms["truth"]["auc"] > arms["id"]["auc"]
    assert all(len(arm["seeds"]) == len(SEEDS) for arm in arms.values())
    assert found["gate_curve"] == []


def test_settings_of_the_evidence_name_arms_that_there_are() -> None:
    assert ablate_features.Config(arms=["id", None]).arms == ("id", "null")  # as YAML reads [id, null]
    with pytest.raises(ValueError, match="choose from id, caption"):
        ablate_features.Config(arms=("id", "captions"))
    with pytest.raises(ValueError, match="named twice"):
        ablate_features.Config(arms=("id", "id"))
    with pytest.raises(ValueError, match="add it"):
        ablate_features.Config(arms=("caption",))
