"""Variants of the ranker: what each reads, the true probabilities, and what comes out of a small comparison."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.ranking.settings import RankerSettings
from operators.features.tokens import NULL_ID
from storage.errors import UserError
from storage.hashing import hash_ids
from storage.run import RunDir
from workflows.catalogs.synthetic.sample import write_sample
from workflows.distributed.trials import run_trials
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ablate_features import scores
from workflows.stages.ablate_features import stage as ablate_features
from workflows.stages.ablate_features.variants import (
    VARIANTS,
    lacks_inputs,
    prefixes_alone,
    variant_items,
    variant_settings,
)
from workflows.stages.features import stage as features
from workflows.stages.ingest import stage as ingest

FITTED, SEEDS = ("id", "image", "truth", "shuffled"), (0, 1)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run of the embedded catalogue up to features, whose captions are the true colours."""
    folder = tmp_path_factory.mktemp("variants")
    catalog = folder / "catalog"
    write_sample(str(catalog), items=60, users=150, seed=1)
    said: list[str] = []
    context = Context(RunDir(str(folder / "run")), str(catalog), 0, "f", said.append, lambda done, total: None)
    stage("ingest").run(ingest.Config(), context)
    colours = dict(pl.read_parquet(catalog / "truth_items.parquet").select("item_id", "colour").iter_rows())
    items = context.run.read_table("catalog", "items").select(["item_id", "title", "description", "attributes"])
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
    return variant_items(items, VARIANTS[name], context.run, context.catalog, seed=seed)["caption"].to_pylist()


def test_controls_keep_the_form_of_captions_and_lose_what_they_say(context: Context) -> None:
    captions = captions_of(context, "caption")
    assert captions == context.run.read_table("features", "items")["caption"].to_pylist()
    assert captions_of(context, "null") == [[NULL_ID]] * len(captions)
    shuffled, random = captions_of(context, "shuffled"), captions_of(context, "random")
    assert shuffled != captions
    assert sorted(shuffled) == sorted(captions)
    assert [len(tokens) for tokens in random] == [len(tokens) for tokens in captions]
    assert sorted(chain.from_iterable(random)) == sorted(chain.from_iterable(captions))
    assert random != captions
    for name in ("shuffled", "random"):
        assert captions_of(context, name) == captions_of(context, name)
        assert captions_of(context, name) != captions_of(context, name, seed=1)


def test_prefixes_alone_leave_out_single_codes() -> None:
    sids = pa.chunked_array([pa.array([[5, 6, 7, 8, 9], [5, 3, 7, NULL_ID, 4]], pa.list_(pa.int64()))])
    assert prefixes_alone(sids).to_pylist() == [[5, 6, NULL_ID, 8, NULL_ID], [5, 3, NULL_ID, NULL_ID, NULL_ID]]


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


def test_a_variant_whose_inputs_no_item_has_is_known(context: Context, tmp_path: Path) -> None:
    items = context.run.read_table("features", "items")
    assert not any(lacks_inputs(variant, items, context.run) for variant in VARIANTS.values())
    none = pa.array([[NULL_ID]] * len(items), pa.list_(pa.int64()))
    bare = items.set_column(items.schema.get_field_index("caption"), "caption", none)
    lacking = {name for name, variant in VARIANTS.items() if lacks_inputs(variant, bare, context.run)}
    assert lacking == {name for name, variant in VARIANTS.items() if "caption" in variant.bags} - {"truth"}
    other = RunDir(str(tmp_path))
    other.write_table(pa.table({"item_id": ["a"], "image_vector": pa.nulls(1, pa.list_(pa.float32(), 4))}), "items")
    assert lacks_inputs(VARIANTS["image"], items, other)


def test_a_variant_reads_ids_and_what_its_name_says() -> None:
    settings = RankerSettings()
    read = {"caption+sid": {"caption", "sid"}, "title": {"title"}}
    vectors = {"image": (4, 0), "sid-decoded": (4, 4)}
    for name in ("id", *read, *vectors):
        config = variant_settings(settings, VARIANTS[name]).ranker({"hash": {}, "dense": [], "history": 5}, 4)
        assert set(config.tables) == {"user", "item"} | read.get(name, set())
        assert (config.content_dim, config.decoded_dim) == vectors.get(name, (0, 0))


def test_the_truth_is_what_can_be_seen_and_not_told_everywhere(context: Context, tmp_path: Path) -> None:
    truth = pl.read_parquet(Path(context.catalog) / "truth_items.parquet").row(0, named=True)
    ids = context.run.read_table("features", "items")["item_id"].to_pylist()
    seen = [f"{name}={truth[name]}" for name in ("category", "colour", "pattern", "material")]
    assert captions_of(context, "truth")[ids.index(truth["item_id"])] == hash_ids(seen).tolist()
    items = context.run.read_table("features", "items")
    with pytest.raises(UserError, match="take truth out"):
        variant_items(items, VARIANTS["truth"], context.run, str(tmp_path), seed=0)


def test_pairs_are_of_known_users_and_new_items_as_they_stood_after_training(context: Context) -> None:
    run = context.run
    train = run.read_table("features", "train")
    pairs = scores.true_pairs(run, context.catalog, train, users=20)
    assert pairs is not None
    ids = np.array(run.read_table("features", "items")["item_id"].to_pylist())
    rows = pairs.examples["row"].to_numpy().reshape(pairs.probability.shape)
    assert not set(ids[rows[0]]) & set(ids[train["row"].to_numpy()])
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


@pytest.mark.usefixtures("trials_here")
def test_variants_are_fitted_side_by_side_and_judged(context: Context, tmp_path: Path) -> None:
    settings = RankerSettings(epochs=4, batch_size=64, embedding_lr=0.05, tables={"caption": {"rows": 64}})
    examples = scores.read_examples(context.run, context.catalog, users=20)
    folder, done = tmp_path / "scores", []

    def fit(names: tuple[str, ...]) -> dict[str, list[pa.Table]]:
        return run_trials(
            partial(scores.score, settings, examples, context.run, context.catalog),
            names,
            SEEDS,
            folder=str(folder),
            at_once=2,
            progress=lambda number, of: done.append((number, of)),
        )

    fit(FITTED[:-1])
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == len(SEEDS) * len(FITTED[:-1])
    fitted = fit(FITTED)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.keys() == {f"{name}-{seed}.json" for name in FITTED for seed in SEEDS}
    assert {name: after[name] for name in before} == before
    assert done == [*((number, 6) for number in range(1, 7)), *((number, 8) for number in range(1, 9))]

    items = context.run.read_table("features", "items")
    found = scores.judge(fitted, examples, items, seed=0, draws=20)
    assert set(found) == {"test", "test_cold", "truth_cold", "gate_curve"}
    variants = found["truth_cold"]["variants"]
    assert set(variants) == set(FITTED)
    assert variants["truth"]["auc"] > variants["id"]["auc"]
    assert all(len(variant["seeds"]) == len(SEEDS) for variant in variants.values())
    assert found["gate_curve"] == []


@pytest.mark.usefixtures("trials_here")
def test_the_stage_leaves_out_what_lacks_its_inputs_and_writes_what_it_found(context: Context) -> None:
    ranker = RankerSettings(epochs=1, batch_size=64, tables={"caption": {"rows": 64}})
    config = ablate_features.Config(variants=("id", "caption", "sid"), seeds=2, bootstrap=10, users=20, ranker=ranker)
    items = context.run.read_table("features", "items")
    none = pa.array([[NULL_ID]] * len(items), pa.list_(pa.int64()))
    bare = items.set_column(items.schema.get_field_index("sid"), "sid", none)
    context.run.write_table(bare, "features", "items")
    lines: list[str] = []
    shown: list[tuple[int, int]] = []
    try:
        result = stage("ablate_features").run(
            config, replace(context, log=lines.append, progress=lambda *each: shown.append(each))
        )
    finally:
        context.run.write_table(items, "features", "items")
    assert lines[0] == "left out, since no item has what they read: sid"
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (result.rows_in, result.rows_out) == (4, 4)
    written = context.run.read_json("metrics", "ablate_features.json")
    assert set(written["test"]["variants"]) == {"id", "caption"}
    assert [line.partition(": ")[2] for line in lines[1:]] == [
        sentence for part in ("test", "test_cold", "truth_cold") for sentence in written[part]["sentences"]
    ]


def test_more_examples_than_fit_are_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "MOST_EXAMPLES", 10)
    with pytest.raises(UserError, match=r"^[^.]+ 10 at most, [^.]+\.$"):
        scores.read_examples(context.run, context.catalog, users=5)


def test_settings_name_variants_that_there_are() -> None:
    assert ablate_features.Config(variants=["id", None]).variants == ("id", "null")  # as YAML reads [id, null]
    with pytest.raises(ValueError, match="choose from id, caption"):
        ablate_features.Config(variants=("id", "captions"))
    with pytest.raises(ValueError, match="named twice"):
        ablate_features.Config(variants=("id", "id"))
    with pytest.raises(ValueError, match="add it"):
        ablate_features.Config(variants=("caption",))
