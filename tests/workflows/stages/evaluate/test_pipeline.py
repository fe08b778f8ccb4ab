"""The pipeline's blend is chosen on validation, and what is measured of it is what the service answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.common.jagged import Jagged
from models.evaluation.lists import ndcg, ranks, recall
from models.recommenders.popularity import MostPopular
from models.recommenders.sasrec import SasRec, SasRecConfig
from operators.log.partitions import open_log
from operators.log.sequences import read_queries, read_training, split_parts
from operators.log.split import SplitTime
from serving.cascade import PIPELINE, RANKER, Cascade
from serving.pipeline import Pipeline
from serving.query import Query
from serving.ranking import Users
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.serving.finished import ITEMS, store_of, write_run
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.evaluate import stage as evaluate

ASKED = {"history": 20, "repeats": False}
DONE = ("ingest", "interpret", "project", "quantize", "features", "rank", "generate")


def finish(run: RunDir, *stages: str) -> None:
    entries = {name: StageEntry(state="complete", fingerprint=name) for name in stages}
    write_manifest(run.root, Manifest(name="tiny", stages=entries))


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[RunDir, dict[str, Any]]:
    """A run with a SASRec of random weights, after `evaluate`, and what that has measured."""
    run = write_run(tmp_path_factory.mktemp("run"), labels=True)
    torch.manual_seed(3)
    model = SasRec(SasRecConfig(dim=8, layers=1, inner=8, length=10), torch.ones(ITEMS, dtype=torch.int64))
    model.save(run.uri("models", "generator", "sasrec"), model.state_dict())
    written = {"chosen": "sasrec", "queries": ASKED, "valid": {"sasrec": {}}, "history": {}, "ensemble": {}}
    run.write_json(written, "metrics", "generate.json")
    finish(run, *DONE)
    context = Context(run, run.root, 0, "f", log=lambda line: None, progress=lambda done, total: None)
    metrics = stage("evaluate").run(evaluate.Config(bootstrap=20), context).metrics
    finish(run, *DONE, "evaluate")
    return run, metrics


def as_measured(run: RunDir) -> Cascade:
    """What the service has, but for what it knows of items: that is of training."""
    return Cascade(run, training=read_training(open_log(run), SplitTime()))


def test_the_service_answers_with_the_lists_that_were_measured(measured) -> None:
    run, metrics = measured
    pipeline = Pipeline(run, store_of(run))
    pipeline.cascade = as_measured(run)
    test = read_queries(open_log(run), SplitTime(), "test", **ASKED, most=2_000, seed=0)
    ids = pipeline.catalogue.ids.to_pylist()

    def named(values: torch.Tensor) -> list[str]:
        return [ids[row] for row in values.tolist()]

    queries = [
        Query(history=named(one.histories.values), exclude=named(one.seen.values), k=10)
        for one in (test.take(np.array([at])) for at in range(len(test.user)))
    ]
    answers = pipeline.recommend(queries)
    lists = np.full((len(queries), 10), -1)
    for row, answer in enumerate(answers):
        found = pipeline.catalogue.rows([item.item_id for item in answer.items])
        lists[row, : len(found)] = found
    places = ranks(lists, test.target.numpy())
    assert metrics[PIPELINE]["queries"] == len(queries) > 20
    assert metrics[PIPELINE]["recall@10"] == pytest.approx(float(recall(places, 10).mean()))
    assert metrics[PIPELINE]["ndcg@10"] == pytest.approx(float(ndcg(places, 10).mean()))


def test_who_comes_without_a_history_is_measured_with_popular_items(measured) -> None:
    run, metrics = measured
    log = open_log(run)
    test = read_queries(log, SplitTime(), "test", **ASKED, most=2_000, seed=0)
    new = np.flatnonzero(test.histories.offsets.diff().numpy() == 0)
    assert len(new)
    asked, others = test.take(new), test.take(np.setdiff1d(np.arange(len(test.user)), new))
    positives = read_training(log, SplitTime()).positives
    popular = MostPopular(torch.from_numpy(positives)).recommend(asked.histories, k=10, banned=asked.seen)
    cascade = as_measured(run)
    ranked = cascade.ranked(Users.visitors(others.histories), cascade.blend.candidates, banned=others.seen)
    order = cascade.scores(ranked, cascade.blend.candidates).argsort(dim=1, descending=True, stable=True)[:, :10]
    parts = ((popular.items, asked), (ranked.items.gather(1, order), others))
    gains = np.concatenate([ndcg(ranks(items.numpy(), one.target.numpy()), 10) for items, one in parts])
    assert metrics[PIPELINE]["ndcg@10"] == pytest.approx(float(gains.mean()))


def test_the_blend_is_kept_and_used(measured) -> None:
    run, metrics = measured
    found = metrics[PIPELINE]
    assert found["recommenders"] == ["sasrec", "content"]
    assert set(found["weights"]) == {"sasrec", "content", RANKER}
    assert sum(found["weights"].values()) == pytest.approx(1)
    blend = Pipeline(run, store_of(run)).cascade.blend
    assert (blend.weights, blend.smoothing) == (found["weights"], found["smoothing"])
    assert sum(blend.candidates.values()) == 200
    assert found["best"] in metrics
    assert found["over_best"] > 0


def test_what_is_asked_for_is_not_known_before(measured) -> None:
    """The counts of items are those of training, in the bonus of popular ones and in what the ranker reads."""
    run, _ = measured
    log = open_log(run)
    parts = list(split_parts(log, SplitTime()))
    trained = [(each.events.take(each.split == 0), each.split) for each in parts]
    likes = sum(np.bincount(events.item[events.label > 0], minlength=ITEMS) for events, _ in trained)
    seen = sum(np.bincount(events.item, minlength=ITEMS) for events, _ in trained)
    served, asked = Cascade(run), as_measured(run)
    assert asked.popularity.tolist() == likes.tolist() != served.popularity.tolist()
    visitor = Users.visitors(Jagged(torch.tensor([], dtype=torch.int64), torch.tensor([0, 0])))
    rows = torch.arange(ITEMS)[None]
    assert not torch.equal(asked.logits(visitor, rows), served.logits(visitor, rows))
    at = asked.ranker._counted.index("item_events")
    assert asked.ranker._items.rows[:, at].tolist() == pytest.approx(np.log1p(seen).tolist())
