from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from models.common.jagged import Jagged, gather
from models.ranking.ranker import load_ranker
from operators.features.long_history import read_prefixes, shared_prefixes
from operators.features.ranker_inputs import Examples, laid_out, predict
from operators.features.tokens import NULL_ID
from operators.log.encoding import encode
from operators.log.events import DAY_US, Events, counts, histories
from serving.pipeline import Pipeline
from serving.query import Query
from serving.ranking import RunRanker, Users
from serving.stores.base import Event
from storage import files
from storage.errors import UserError
from storage.hashing import hash_ids
from storage.manifest import require_manifest, write_manifest
from storage.run import RunDir
from tests.logs import read_examples, read_log_table
from tests.serving.finished import store_of

WHO = ["user 0", "user 7", "late user"]


@pytest.fixture(scope="module", params=["finished_run", "unlabelled_run"])
def run(request) -> RunDir:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pipeline(run) -> Pipeline:
    return Pipeline(run, store_of(run))


def items_of(pipeline: Pipeline, **query: object) -> list[str]:
    return [item.item_id for item in pipeline.recommend([Query(**query)])[0].items]


def liked(run: RunDir, user_id: str) -> list[str]:
    log = read_log_table(run).to_pylist()
    return [row["item_id"] for row in log if row["user_id"] == user_id and row.get("label", 1) > 0]


def offline(run: RunDir, user_id: str, item_ids: list[str]) -> tuple[Examples, np.ndarray]:
    """What the offline path says just after the log's end: examples made from the log, then `predict`."""
    spec = run.read_json("features", "spec.json")
    ranker = load_ranker(run.uri("models", "ranker"))
    table = run.read_table("features", "items")
    items, ids = laid_out(table, run.read_table("embeddings"), ranker.config), table["item_id"].to_pylist()
    log = encode(read_log_table(run), table["item_id"])
    rows = np.array([ids.index(item_id) for item_id in item_ids])
    user = np.full(len(rows), log.users.to_pylist().index(user_id))
    time = np.full(len(rows), log.events.time.max() + 1)
    events = Events(*(getattr(log.events, field.name) for field in dataclasses.fields(Events)))
    values, offsets = histories(events, user, time, length=spec["history"])
    trained = user_id in read_examples(run, "train")["user_id"].to_list()
    table = {
        "user": np.full(len(rows), hash_ids([user_id])[0] if trained else NULL_ID),
        "row": rows.astype(np.int32),
        "history": pa.ListArray.from_arrays(offsets, values),
        "context_position": np.full(len(rows), np.nan, np.float32),
        "label": np.zeros(len(rows), np.float32),
        **counts(events, rows, user, time, rates=log.labelled),
    }
    if length := spec.get("long_history"):
        table |= shared_prefixes(events, read_prefixes(run), user, rows, time, length=length).columns()
        assert table["long_history"].value_lengths().to_numpy().max() > 1
    examples = Examples(pa.table(table), spec["dense"])
    return examples, predict(ranker, items, examples)


@pytest.mark.parametrize("user_id", WHO)
def test_scores_equal_those_of_the_offline_path(run, pipeline, user_id) -> None:
    answer = pipeline.recommend([Query(user_id=user_id, k=20)])[0]
    chances = np.array([item.probability for item in answer.items])
    np.testing.assert_allclose(chances, offline(run, user_id, [i.item_id for i in answer.items])[1], rtol=1e-5)
    assert chances.std() > 0.001
    assert (np.diff(chances) <= 0).all()  # without another choice of `evaluate`, the ranker orders


def test_features_and_scores_of_all_users_and_items_equal_those_of_the_offline_path(run, pipeline, monkeypatch) -> None:
    ids, scorer, given = pipeline.catalogue.ids.to_pylist(), pipeline.cascade.ranker._scorer, {}
    logits = scorer.logits

    def noted(**features: object) -> torch.Tensor:
        given.update(features)
        return logits(**features)

    monkeypatch.setattr(scorer, "logits", noted)
    users = sorted(set(read_log_table(run)["user_id"].to_pylist()))
    assert len(users) > 25
    for user_id in users:
        examples, expected = offline(run, user_id, ids)
        answer = pipeline.rank(Query(user_id=user_id, k=len(ids)), ids)
        found = {item.item_id: item.probability for item in answer.items}
        np.testing.assert_allclose([found[item_id] for item_id in ids], expected, rtol=1e-5)
        np.testing.assert_allclose(given["dense"].numpy(), examples.dense, rtol=1e-6)
        assert given["user"].tolist() == examples.user.unique().tolist()
        assert given["history"].values.tolist() == gather(examples.history, torch.tensor([0])).values.tolist()
        if examples.long is not None:
            assert given["long"].values.tolist() == examples.long.values.tolist()
            assert given["long"].offsets.tolist() == examples.long.offsets.tolist()


@pytest.mark.parametrize("user_id", WHO)
def test_a_user_gets_exactly_what_they_have_not_liked(run, pipeline, user_id) -> None:
    found = items_of(pipeline, user_id=user_id, k=100)
    assert len(found) == len(set(found))
    assert set(found) == set(pipeline.catalogue.ids.to_pylist()) - set(liked(run, user_id))


def test_only_the_retrieved_candidates_are_ranked(finished_run) -> None:
    pipeline = Pipeline(finished_run, store_of(finished_run), candidates=4)
    history = ["item 3", "item 8"]
    ids = pipeline.catalogue.ids.to_pylist()
    rows = Jagged(torch.tensor([ids.index(item) for item in history]), torch.tensor([0, 2]))
    candidates = pipeline.cascade.content.recommend(rows, k=4, banned=rows).items[0]
    found = items_of(pipeline, history=history)
    assert set(found) == {ids[row] for row in candidates}
    assert found[:2] == items_of(pipeline, history=history, k=2)


def test_who_is_unknown_gets_the_most_popular_items_whatever_the_ranker_says(finished_run) -> None:
    pipeline = Pipeline(finished_run, store_of(finished_run), candidates=5)
    log = pl.DataFrame(read_log_table(finished_run)).filter(pl.col("label") > 0)
    likes = dict(log.group_by("item_id").len().iter_rows())
    ids = pipeline.catalogue.ids.to_pylist()
    popular = sorted(ids, key=lambda item_id: -likes.get(item_id, 0))[:5]
    for query in (Query(user_id="nobody"), Query(), Query(history=["nothing"])):
        answer = pipeline.recommend([query])[0]
        assert answer.source == "popularity"
        assert [item.item_id for item in answer.items] == popular
    assert pipeline.recommend([Query(user_id="user 1")])[0].source == "history"


def test_unknown_ids_of_a_history_are_named_and_change_nothing(pipeline) -> None:
    answer = pipeline.recommend([Query(history=["x", "item 3", "y", "item 4", "x"])])[0]
    assert answer.unknown == ["x", "y"]
    assert answer.items == pipeline.recommend([Query(history=["item 3", "item 4"])])[0].items
    assert answer.source == "history"


def test_what_a_visitor_did_counts_only_where_it_is_known(finished_run, unlabelled_run) -> None:
    """In a labelled log user_events counts impressions; of those a history of likes says nothing."""
    visitor = Users.visitors(Jagged(torch.tensor([1, 2]), torch.tensor([0, 2])))
    for run, known in ((finished_run, np.nan), (unlabelled_run, np.log1p(2))):
        ranker = RunRanker(run)
        dense = dict(
            zip(load_ranker(run.uri("models", "ranker")).config.dense, ranker.dense(visitor)[0].tolist(), strict=True)
        )
        assert dense.pop("user_events") == pytest.approx(known, nan_ok=True)
        assert np.isnan(list(dense.values())).all()


def test_a_long_history_is_left_out_whole_and_ranks_by_its_end(pipeline) -> None:
    history = [f"item {n}" for n in range(40)]
    answer = pipeline.recommend([Query(history=history, k=100)])[0]
    assert {item.item_id for item in answer.items} == set(pipeline.catalogue.ids.to_pylist()) - set(history)
    assert pipeline.recommend([Query(history=pipeline.catalogue.ids.to_pylist(), k=100)])[0].items == []
    turned = pipeline.recommend([Query(history=history[::-1], k=100)])[0]
    assert turned.items != answer.items


def test_together_as_alone(pipeline) -> None:
    queries = [
        Query(user_id="user 2", k=3),
        Query(user_id="nobody", k=1),
        Query(history=["item 1"] * 3, k=50),
        Query(history=["item 9", "?"]),
        Query(user_id="late user", k=100),
    ]
    for query, together in zip(queries, pipeline.recommend(queries), strict=True):
        alone = pipeline.recommend([query])[0]
        assert (together.source, together.unknown) == (alone.source, alone.unknown)
        assert len(together.items) == len(alone.items)
        for left, right in zip(together.items, alone.items, strict=True):
            assert left.probability == pytest.approx(right.probability, rel=1e-5)
            assert dataclasses.replace(left, probability=right.probability) == right


def test_recommenders_that_the_run_lacks_spoil_no_query(pipeline) -> None:
    queries = [Query(user_id="user 2", k=5, recommenders=names) for names in (("gone", "content"), ("gone",))]
    plain = [Query(user_id="user 2", k=5, recommenders=names) for names in (("content",), ())]
    assert pipeline.recommend(queries) == pipeline.recommend(plain)


def test_an_item_and_what_is_missing_of_it(pipeline) -> None:
    assert pipeline.item("item 8") == {
        "item_id": "item 8",
        "title": "title 8",
        "description": "title 8",
        "caption": "a thing of kind 0",
        "interests": None,
        "sid": "<a_0><b_3><c_8>",
        "attributes": {"kind": ["0"]},
        "media": [{"uri": "media/8.jpg", "kind": "image"}],
        "hidden": False,
    }
    bare = pipeline.item("item 0")
    assert bare is not None
    assert [name for name, value in bare.items() if value is None] == ["title", "description", "caption", "interests"]
    assert bare["attributes"] == {}
    assert pipeline.item("item") is None


def test_an_artifact_that_lacks_items_is_the_users_to_mend(finished_run, tmp_path) -> None:
    fs, path = files.filesystem(finished_run.root)
    fs.cp(path, str(tmp_path / "run"), recursive=True)
    broken = RunDir(str(tmp_path / "run"))
    broken.write_table(broken.read_table("sids").slice(2), "sids")
    with pytest.raises(UserError, match="2 items are missing in sids"):
        Pipeline(broken, store_of(broken))


def test_the_next_answer_knows_of_an_event(pipeline: Pipeline) -> None:
    def event(number: int, item_id: str, weight: float) -> Event:
        return Event("somebody new", f"{number}", item_id, "kind", weight, 90 * DAY_US + number)

    first = pipeline.recommend([Query(user_id="somebody new", k=5)])[0]
    assert first.source == "popularity"
    liked_one, disliked_one = (item.item_id for item in first.items[:2])
    assert pipeline.store.add([event(1, liked_one, 1.0), event(2, "no item", 1.0)]) == 2
    second = pipeline.recommend([Query(user_id="somebody new", k=60)])[0]
    as_told = pipeline.recommend([Query(history=[liked_one], k=60)])[0]
    assert second.source == "history"
    found = [item.item_id for item in second.items]
    assert liked_one not in found
    assert sorted(found) == sorted(item.item_id for item in as_told.items)
    assert disliked_one in found
    without = pipeline.recommend([Query(user_id="somebody new", k=60, exclude=[disliked_one])])[0].items
    assert pipeline.store.add([event(3, disliked_one, -1.0), event(1, liked_one, 1.0)]) == 1
    third = {item.item_id: item.score for item in pipeline.recommend([Query(user_id="somebody new", k=60)])[0].items}
    assert disliked_one not in third
    assert set(third) == {item.item_id for item in without}
    assert sum(third.values()) < sum(item.score for item in without)  # what is like it has less
    pipeline.store.forget("somebody new", 2**60)
    assert pipeline.recommend([Query(user_id="somebody new", k=5)])[0] == first


def test_a_run_without_a_ranker_says_so_in_place_of_the_order_that_was_sent(pipeline: Pipeline, monkeypatch) -> None:
    monkeypatch.setattr(pipeline.cascade, "ranker", None)
    with pytest.raises(UserError, match="no ranker"):
        pipeline.rank(Query(user_id="user 0", k=2), ["item 1", "item 2"])


def test_ranked_items_are_explained_where_that_is_asked_for(run, pipeline: Pipeline) -> None:
    items = items_of(pipeline, user_id="user 7", k=3)
    plain, explained = (
        pipeline.rank(Query(user_id="user 7", k=3, explain=asked), items).items for asked in (False, True)
    )
    assert [item.why for item in plain] == [None] * 3
    assert [item.item_id for item in explained] == [item.item_id for item in plain]
    assert {item.why.nearest for item in explained} <= set(liked(run, "user 7"))


def test_quality_is_of_recommenders_and_has_no_half_of_an_interval(finished_run, tmp_path) -> None:
    place = RunDir(files.absolute(str(shutil.copytree(finished_run.root, tmp_path / "run"))))
    lists = {"ndcg@10": 0.1, "recall@10": 0.2, "coverage@10": 0.5, "ndcg@10_interval": [None, None]}
    place.write_json({"content": lists, "generator_over_content": {"ndcg@10": 2.3}}, "metrics", "evaluate.json")
    manifest = require_manifest(place.root)
    manifest.stages["evaluate"] = manifest.stages["quantize"]
    write_manifest(place.root, manifest)
    expected = {"ndcg@10": 0.1, "recall@10": 0.2, "coverage@10": 0.5}
    assert Pipeline(place, store_of(place)).quality() == {
        "content": {**expected, "ndcg@10_interval": None, "recall@10_interval": None}
    }
