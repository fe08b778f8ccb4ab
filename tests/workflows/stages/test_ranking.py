"""features, rank and evaluate, one after the other, on a small log in which captions decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.common.recommender import Queries
from models.evaluation.clicks import total_loss
from models.ranking.ranker import load_ranker
from operators.features.ranker_inputs import Examples, aligned, laid_out, predict
from operators.features.tokens import NULL_ID
from operators.log import sequences
from operators.log.events import SPLITS
from operators.log.partitions import open_log
from operators.log.sequences import read_queries
from operators.log.split import SplitLeaveLast
from storage import files
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import read_examples, read_log_table, write_log
from workflows.distributed import training
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages import rank
from workflows.stages.evaluate import ranker
from workflows.stages.evaluate import stage as evaluate
from workflows.stages.features import stage as features

pytestmark = pytest.mark.long

USERS, ITEMS, EVENTS = 60, 40, 3000
COLOURS = ("red", "green", "blue", "white")
SETTINGS = rank.Config(epochs=4, batch_size=128, embedding_lr=0.05)


def vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def write_run(root: Path, *, labels: bool = True, shuffled: int | None = None, partitions: int = 1) -> Context:
    """A run up to quantize; users like items of their own colour. `shuffled` permutes the rows of every table."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 4, ITEMS)
    names = [COLOURS[c] for c in colour]
    user, item = random.integers(0, USERS, EVENTS), random.integers(0, ITEMS, EVENTS)
    user[-50:] = USERS + np.arange(50)  # first seen in the test period
    probability = np.where(user % 4 == colour[item], 0.8, 0.1)
    users, items = [f"u{u}" for u in user], [f"i{i}" for i in range(ITEMS)]
    log = pa.table(
        {
            "user_id": users,
            "item_id": [items[i] for i in item],
            "timestamp": pa.array(np.arange(EVENTS) * 60_000_000, pa.timestamp("us", tz="UTC")),
            "label": (random.random(EVENTS) < probability).astype(np.float32),
            "hour": random.normal(size=EVENTS).astype(np.float32),
        }
    )
    run, catalog = RunDir(str(root / "run")), str(root / "catalog")
    files.write_part(
        files.join(catalog, "truth.parquet"),
        log.select(["user_id", "item_id", "timestamp"]).append_column("probability", pa.array(probability)),
    )
    if not labels:
        log = log.filter(pa.compute.equal(log["label"], 1)).drop_columns("label")
    text = pa.nulls(ITEMS, pa.string())
    sids = np.stack([colour, np.arange(ITEMS) % 3, np.arange(ITEMS)], axis=1).astype(np.int32)
    attributes = pa.nulls(ITEMS, pa.map_(pa.string(), pa.string()))
    tables = {
        ("catalog", "items"): pa.table({"item_id": items, "attributes": attributes}),
        ("items",): pa.table(
            {
                "item_id": items,
                "attributes": attributes,
                "title": text,
                "description": text,
                "caption": [f"a {name} vase" for name in names],
                "interests": pa.nulls(ITEMS, pa.list_(pa.string())),
            }
        ),
        ("sids",): pa.table({"item_id": items, "codes": vectors(sids)}),
        ("embeddings",): pa.table(
            {
                "item_id": items,
                "embedding": vectors((np.eye(4)[colour] + 0.1 * random.normal(size=(ITEMS, 4))).astype(np.float32)),
            }
        ),
    }
    if shuffled is not None:
        log = log.take(np.random.default_rng(shuffled).permutation(log.num_rows))
    write_log(run, log, partitions=partitions)
    for seed, (parts, table) in enumerate(tables.items(), 1):
        if shuffled is not None:
            table = table.take(np.random.default_rng(shuffled + seed).permutation(table.num_rows))
        run.write_table(table, *parts)
    return Context(
        run=run,
        catalog=catalog,
        seed=3,
        fingerprint=root.name,
        log=lambda line: None,
        progress=lambda done, total: None,
    )


def read(context: Context, name: str) -> pl.DataFrame:
    if name in SPLITS:
        return read_examples(context.run, name)
    return pl.from_arrow(context.run.read_table("features", name))


def test_every_event_becomes_an_example_with_what_was_known(tmp_path: Path) -> None:
    context = write_run(tmp_path)
    result = stage("features").run(features.Config(history=5), context)
    assert (result.rows_in, result.rows_out, result.rejected) == (EVENTS, EVENTS, 0)
    log = pl.from_arrow(read_log_table(context.run)).sort("timestamp")
    parts = [read(context, name) for name in ("train", "valid", "test")]
    rows = pl.concat(parts).sort("timestamp")
    assert rows.select("user_id", "item_id", "timestamp", "label", hour="context_hour").equals(
        log.select("user_id", "item_id", "timestamp", "label", "hour")
    )
    item_ids = read(context, "items")["item_id"].to_list()
    assert [item_ids[row] for row in rows["row"]] == rows["item_id"].to_list()
    liked = log.filter(pl.col("label") == 1)
    for example in rows.sample(40, seed=0).iter_rows(named=True):
        past = liked.filter((pl.col("user_id") == example["user_id"]) & (pl.col("timestamp") < example["timestamp"]))[
            "item_id"
        ].to_list()
        assert [item_ids[row] for row in example["history"]] == past[-5:]
        count = log.filter((pl.col("item_id") == example["item_id"]) & (pl.col("timestamp") < example["timestamp"]))
        assert example["item_events"] == pytest.approx(np.log1p(len(count)), abs=1e-5)
    train, test = parts[0], parts[2]
    cold = ~test["user_id"].is_in(train["user_id"].unique().to_list())
    assert cold.sum() >= 50
    assert ((test["user"] == NULL_ID) == cold).all()
    users = read(context, "users")
    assert set(users["user_id"]) == set(log["user_id"])
    everything = liked.filter(pl.col("user_id") == "u1")
    state = users.row(by_predicate=pl.col("user_id") == "u1", named=True)
    assert [item_ids[row] for row in state["seen"]] == everything["item_id"].to_list()
    assert state["seen_time"] == everything["timestamp"].dt.epoch("us").to_list()
    assert state["events"] == log.filter(pl.col("user_id") == "u1").height
    assert state["history"] == state["seen"][-5:]


def test_columns_of_the_log_never_take_the_place_of_features(tmp_path: Path) -> None:
    plain, named = write_run(tmp_path / "plain"), write_run(tmp_path / "named")
    log = read_log_table(named.run)
    for name in ("row", "item_events", "user", "history"):
        log = log.append_column(name, log["hour"])
    write_log(named.run, log)
    for context in (plain, named):
        stage("features").run(features.Config(), context)
    for name in ("train", "valid", "test"):
        expected, found = read(plain, name), read(named, name)
        assert found.select(expected.columns).equals(expected)
        assert found["context_row"].equals(found["context_hour"], check_names=False)
    extra = {"context_row", "context_item_events", "context_user", "context_history"}
    dense, more = (context.run.read_json("features", "spec.json")["dense"] for context in (plain, named))
    assert set(more) == {*dense, *extra}
    assert len(more) == len(dense) + len(extra)


def test_the_order_of_the_input_does_not_matter(tmp_path: Path) -> None:
    for labels in (True, False):
        tables = []
        for shuffled in (None, 7):
            context = write_run(tmp_path / f"{labels}-{shuffled}", labels=labels, shuffled=shuffled)
            stage("features").run(features.Config(), context)
            tables.append([read(context, name) for name in ("items", "users", "train", "valid", "test")])
        assert all(a.equals(b) for a, b in zip(*tables, strict=True))


def test_without_labels_negatives_join_the_first_interactions(tmp_path: Path) -> None:
    context = write_run(tmp_path, labels=False)
    result = stage("features").run(features.Config(negatives=2), context)
    log = pl.from_arrow(read_log_table(context.run))
    rows = pl.concat([read(context, name) for name in ("train", "valid", "test")])
    positives, negatives = rows.filter(pl.col("label") == 1), rows.filter(pl.col("label") == 0)
    first_of_item = sum(result.metrics[name]["first_of_item"] for name in ("train", "valid", "test"))
    assert first_of_item == log["item_id"].n_unique()
    assert len(log.unique(["user_id", "item_id"])) == len(log) - result.metrics["repeats"]
    assert len(positives) == len(log) - result.metrics["repeats"] - first_of_item
    assert 1.9 * len(positives) < len(negatives) <= 2 * len(positives)
    assert "item_rate" not in rows.columns
    once = negatives.join(positives, on=["user_id", "timestamp"], suffix="_positive")
    assert len(once) == len(negatives)
    assert (once["context_hour"] == once["context_hour_positive"]).all()  # a negative stands in its positive's place


def test_without_labels_newness_does_not_tell_the_label(tmp_path: Path) -> None:
    """Items arrive all the time here, so that every split holds first events."""
    context = write_run(tmp_path, labels=False)
    log = read_log_table(context.run)
    event = np.arange(log.num_rows)
    newest = event * ITEMS // len(event)
    items = pa.array([f"i{n}" for n in np.maximum(newest - event % 3, 0)])
    write_log(context.run, log.set_column(1, "item_id", items))
    stage("features").run(features.Config(), context)
    for name in ("train", "valid", "test"):
        rows = read(context, name)
        assert rows["item_events"].min() > 0
        assert rows["item_age"].min() >= 0
        assert rows["label"].n_unique() == 2


def test_a_log_of_likes_alone_is_a_log_without_labels(tmp_path: Path) -> None:
    tables, said = [], []
    for name in ("bare", "liked"):
        context = replace(write_run(tmp_path / name, labels=False), log=said.append)
        log = read_log_table(context.run)
        if name == "liked":
            log = log.append_column("label", pa.array(np.ones(log.num_rows, np.float32)))
        write_log(context.run, log)
        assert stage("features").run(features.Config(), context).metrics["labels"] is False
        tables.append([read(context, part) for part in ("items", "users", "train", "valid", "test")])
    for other in tables[1:]:
        assert all(a.equals(b) for a, b in zip(tables[0], other, strict=True))
    assert sum("every event counts as a positive" in line for line in said) == 1


def test_leave_last_trains_on_no_held_out_event(tmp_path: Path) -> None:
    context = replace(write_run(tmp_path), split=SplitLeaveLast(kind="leave_last"))
    stage("features").run(features.Config(), context)
    log = pl.from_arrow(read_log_table(context.run))
    heavy = log.group_by("user_id").len().filter(pl.col("len") >= 3)
    train, valid, test = (read(context, name) for name in ("train", "valid", "test"))
    assert len(test) == len(valid) == len(heavy)
    last = log.group_by("user_id").agg(pl.col("timestamp").max())
    assert len(test.join(last, on=["user_id", "timestamp"])) == len(test)
    # An item's count in training is the number of earlier *training* events.
    row = train.sort("timestamp").row(-1, named=True)
    count = train.filter((pl.col("item_id") == row["item_id"]) & (pl.col("timestamp") < row["timestamp"]))
    assert row["item_events"] == pytest.approx(np.log1p(len(count)), abs=1e-5)


@pytest.mark.parametrize("kind", ["missing", "nothing liked", "foreign"])
def test_unusable_logs_are_explained(tmp_path: Path, kind: str) -> None:
    context = write_run(tmp_path)
    log = read_log_table(context.run)
    if kind == "missing":
        files.remove(context.run.uri("log"))
    elif kind == "nothing liked":
        label = pa.array([0.0] * log.num_rows, pa.float32())
        write_log(context.run, log.set_column(3, "label", label))
    else:
        foreign = pa.array(["?"] * log.num_rows)
        write_log(context.run, log.set_column(1, "item_id", foreign))
    with pytest.raises(UserError, match=r"^[^.]+\.$"):
        stage("features").run(features.Config(), context)
    assert not files.exists(context.run.uri("features", "train"))


@pytest.mark.usefixtures("fits_here")
def test_the_exported_ranker_scores_as_the_fitted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    context = replace(write_run(tmp_path), progress=lambda done, total: steps.append((done, total)))
    stage("features").run(features.Config(), context)
    result = stage("rank").run(SETTINGS, context)
    assert steps[-1] == (result.metrics["epochs"], SETTINGS.epochs)
    run = context.run
    loaded = load_ranker(run.uri("models", "ranker"))
    items = laid_out(run.read_table("features", "items"), run.read_table("embeddings"), loaded.config)
    valid = Examples(run.read_table("features", "valid"), loaded.config.dense)
    loss = total_loss(valid.label.numpy(), predict(loaded, items, valid, batch_size=77)) / len(valid)
    assert loss == pytest.approx(result.metrics["valid_log_loss"], abs=1e-4)  # its tables are rounded to fp16

    write_manifest(run.root, Manifest(name="ranking", stages={"rank": StageEntry(state="complete")}))
    (about,), opened, score_part = Path(run.root).glob("log/of-*/about.json"), list[bool](), ranker.score_part
    about.unlink()

    def scored(*args: Any) -> Any:
        opened.append(about.exists())
        return score_part(*args)

    monkeypatch.setattr(ranker, "score_part", scored)
    metrics = stage("evaluate").run(evaluate.Config(recall_at=(5,)), context).metrics
    assert opened == [True]  # what is known of the log is found before its pieces ask
    assert run.read_json("metrics", "evaluate.json")["ranker"] == metrics["ranker"]
    assert metrics["popularity"]["auc"] + 0.05 < metrics["ranker"]["auc"]
    assert metrics["auc_gain"]["interval"][0] > 0
    assert metrics["ranker"]["ne"] < metrics["popularity"]["ne"]
    assert metrics["ranker"]["calibration"] == pytest.approx(1, abs=0.3)
    assert metrics["retriever"]["recall@5"] > metrics["retriever"]["popularity_recall@5"]
    assert metrics["ranker"]["auc"] < metrics["truth"]["auc"] + 0.02


def test_a_ranker_goes_on_from_what_its_weights_have_learned(tmp_path: Path, monkeypatch) -> None:
    """Of three runs the second one finds no epoch that is better, so that the weights of the first one stand."""
    context, tasks = write_run(tmp_path), list[dict[str, Any]]()
    stage("features").run(features.Config(), context)
    cut = open_log(context.run).cuts(context.split)[0]
    losses = {"one": {1: 0.5}, "two": {0: 0.4, 1: 0.4}, "three": {0: 0.4, 1: 0.3}}
    previous, found = None, list[int]()
    for name, loss in losses.items():

        def fit(loop: Any, task: dict[str, Any], loss: dict[int, float] = loss, **_: Any) -> list[dict[str, Any]]:
            tasks.append(task)
            return [{"epoch": epoch, "valid_log_loss": value, "rows": 1} for epoch, value in loss.items()]

        monkeypatch.setattr(training, "fit", fit)
        config = SETTINGS.model_copy(update={"previous": previous})
        metrics = stage("rank").run(config, context).metrics
        found.append(metrics["learned_until"] - cut)
        before = RunDir(str(tmp_path / name))  # a manifest alone: of the run before, nothing else is read or written
        metrics["learned_until"] -= 3 if name == "one" else 0  # its log was shorter
        write_manifest(
            before.root, Manifest(name="shop", stages={"rank": StageEntry(state="complete", metrics=metrics)})
        )
        previous = before.root
    assert [task["since"] for task in tasks] == [None, cut - 3, cut - 3]
    assert found == [0, -3, 0]


def test_a_ranker_that_knows_what_is_held_back_begins_anew(tmp_path: Path, monkeypatch) -> None:
    said, tasks = list[str](), list[dict[str, Any]]()
    context = replace(write_run(tmp_path), log=said.append)
    stage("features").run(features.Config(), context)
    cut, before = open_log(context.run).cuts(context.split)[0], str(tmp_path / "before")

    def fit(loop: Any, task: dict[str, Any], **_: Any) -> list[dict[str, Any]]:
        tasks.append(task)
        return [{"epoch": 1, "valid_log_loss": 0.5, "rows": 1}]

    monkeypatch.setattr(training, "fit", fit)
    for until in (cut, cut + 1, None):
        entry = StageEntry(state="complete", metrics={"learned_until": until})
        write_manifest(before, Manifest(name="shop", stages={"rank": entry}))
        stage("rank").run(SETTINGS.model_copy(update={"previous": before}), context)
    assert [(task["since"], task["settings"]["previous"]) for task in tasks] == [
        (cut, before),
        (None, None),
        (None, None),
    ]
    assert [line.split(":")[0] for line in said if "anew" in line] == ["rank begins anew"] * 2


def test_candidates_are_chosen_alike_for_any_number_of_partitions(tmp_path: Path, monkeypatch) -> None:
    samples = list[Queries]()

    def kept(*args: Any, **options: Any) -> Queries:
        samples.append(read_queries(*args, **options))
        return samples[-1]

    monkeypatch.setattr(rank, "COMPARED", 20)
    monkeypatch.setattr(sequences, "read_queries", kept)
    asked = []
    for partitions in (1, 3):
        context = write_run(tmp_path / str(partitions), partitions=partitions)
        stage("features").run(features.Config(), context)
        weight = rank.fit_retriever(context, steps=1)
        folder = context.run.uri("checkpoints", "rank", context.fingerprint, "retriever")
        counts = pl.from_arrow(files.read_table(files.join(folder, "positives")))
        sampled = samples.pop()
        lists = (tensor.tolist() for tensor in (sampled.target, *sampled.histories[:2], *sampled.seen[:2]))
        asked.append((weight, counts.group_by("item").sum().sort("item").to_dicts(), *lists))
        assert len(sampled.target) == 20
        train = read(context, "train").filter(pl.col("label") > 0)
        assert {row["item"]: row["positives"] for row in asked[-1][1]} == dict(
            train.group_by("row").len().sort("row").iter_rows()
        )
    assert asked[0] == asked[1]


@pytest.mark.usefixtures("fits_here")
def test_partitions_give_a_ranker_as_good_as_one(tmp_path: Path) -> None:
    losses = []
    for partitions in (1, 3):
        context = write_run(tmp_path / str(partitions), partitions=partitions)
        stage("features").run(features.Config(), context)
        result = stage("rank").run(SETTINGS.model_copy(update={"window_rows": 1000}), context)
        assert result.rows_in == read(context, "train").height
        losses.append(result.metrics["valid_log_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_a_test_split_that_nobody_liked_recalls_nothing(tmp_path: Path) -> None:
    context = write_run(tmp_path)
    stage("features").run(features.Config(), context)
    run = context.run
    items = run.read_table("features", "items")["item_id"]
    embedding = aligned(items, run.read_table("embeddings"))
    test = run.read_table("features", "test")
    part = open_log(run).part(0)
    popularity = np.arange(ITEMS, dtype=np.float64)
    disliked = test.filter(pa.compute.equal(test["label"], 0))
    some, none = (ranker.retrieval(embedding, rows, part, popularity, (5,), weight=1.0) for rows in (test, disliked))
    assert 0 <= some["recall@5"] <= some["queries"]
    assert some["queries"] > 0
    assert set(none.values()) == {0}


def test_results_do_not_depend_on_the_device() -> None:
    assert rank.Config(use_gpu=True).identity() == rank.Config().identity()
    assert rank.Config(workers=2).identity() != rank.Config().identity()


def test_recall_is_at_some_k() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        evaluate.Config(recall_at=(10, 0))


def test_without_labels_an_item_is_popular_per_day_on_offer() -> None:
    day = 86_400_000_000
    rows = [(0, 2, 1, 2), (0, 5, 1, 5), (1, 9, 1, 1), (1, 9, 0, 1), (2, 4, 0, 3), (0, 10, 1, 10)]
    row, days, label, age = (np.array(column) for column in zip(*rows, strict=True))  # age in days at the event
    stamps = pa.array(days * day, pa.timestamp("us", tz="UTC"))
    train = pa.table({"row": row, "label": label, "timestamp": stamps, "item_age": np.log1p(age)})
    parts = [train.slice(0, 2), train.slice(2, 0), train.slice(2)]
    positives, exposure = ranker.training_counts(parts, 4, labelled=False)
    assert positives.tolist() == [4, 2, 1, 0]  # an item's first event is no example, and counts
    np.testing.assert_allclose(exposure, [10, 2, 9, 0])
    positives, exposure = ranker.training_counts(parts, 4, labelled=True)
    assert (positives.tolist(), exposure.tolist()) == ([3, 1, 0, 0], [3, 2, 1, 0])
