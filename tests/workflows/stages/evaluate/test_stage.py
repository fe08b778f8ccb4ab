"""Evaluate by slices of the catalogue, on hand-made artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.clicks import Sums, auc
from storage import files
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import read_log_table, write_log
from tests.serving.finished import write_run
from workflows.catalogs.synthetic.truth import true_probability
from workflows.engine.registry import stage
from workflows.engine.stage import Context, Result
from workflows.engine.summary import summary
from workflows.stages.evaluate import ranker
from workflows.stages.evaluate import stage as evaluate
from workflows.stages.features import stage as features

PAIRS = (("cold_items", "warm_items"), ("head_items", "tail_items"), ("with_caption", "without_caption"))
SCORERS = ("ranker", "popularity", "truth")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run with the probabilities that its labels came from."""
    run = write_run(tmp_path, labels=True)
    log = read_log_table(run)
    probability = pa.array(np.random.default_rng(1).uniform(0.05, 0.6, log.num_rows))
    files.write_part(run.uri("truth.parquet"), log.append_column("probability", probability))
    write_manifest(run.root, Manifest(name="tiny", stages={"rank": StageEntry(state="complete")}))
    return run


def evaluated(run: RunDir, said: list[str] | None = None, **settings: Any) -> Result:
    context = Context(run, run.root, 0, "f", [].append if said is None else said.append, lambda done, total: None)
    return stage("evaluate").run(evaluate.Config(recall_at=(5,), bootstrap=10, **settings), context)


def context_of(run: RunDir, name: str) -> Context:
    return Context(run, run.root, 0, name, log=lambda line: None, progress=lambda done, total: None)


def rewrite(run: RunDir, **columns: pa.Array) -> None:
    items = run.read_table("features", "items")
    for name, values in columns.items():
        items = items.set_column(items.schema.get_field_index(name), name, values)
    run.write_table(items, "features", "items")


def test_no_row_is_dropped_and_each_slice_holds_its_own(run):
    items = run.read_table("features", "items")
    number = np.array([int(name.removeprefix("item ")) for name in items["item_id"].to_pylist()])
    rewrite(run, item=pa.array(np.where(number % 4 == 0, 0, items["item"].to_numpy())))
    result = evaluated(run)
    test = run.read_table("features", "test")
    label, slices = test["label"].to_numpy(), result.metrics["slices"]
    assert set(slices) == {name for pair in PAIRS for name in pair}
    for pair in PAIRS:
        assert sum(slices[name]["rows"] for name in pair) == test.num_rows
        assert sum(slices[name]["positives"] for name in pair) == (label > 0).sum()
        assert all(set(slices[name]) == {"rows", "positives", *SCORERS} for name in pair)
    of_test = number[test["row"].to_numpy()]
    assert slices["without_caption"]["rows"] == (of_test % 7 == 0).sum()
    cold = of_test % 4 == 0
    assert slices["cold_items"]["rows"] == cold.sum()
    probability = true_probability(run.root, ranker.with_ids(run, test))
    user = np.unique(test["user_hash"].to_numpy(), return_inverse=True)[1]
    rows = label[cold], probability[cold]
    expected = {"auc": auc(*rows), **Sums.of(user[cold], *rows).metrics()}
    assert slices["cold_items"]["truth"] == pytest.approx(expected)


def test_the_slice_of_everything_scores_as_everything_and_an_empty_one_is_null(run):
    items = run.read_table("features", "items")
    rewrite(run, item=pa.array(np.arange(1, items.num_rows + 1)), caption=pa.array([[0]] * items.num_rows))
    metrics = evaluated(run).metrics
    for scorer in SCORERS:
        overall = {name: value for name, value in metrics[scorer].items() if name != "auc_interval"}
        assert metrics["slices"]["warm_items"][scorer] == overall
        assert metrics["slices"]["without_caption"][scorer] == overall
        assert all(np.isnan(value) for value in metrics["slices"]["cold_items"][scorer].values())
    written = run.read_json("metrics", "evaluate.json")["slices"]
    assert written["cold_items"]["rows"] == 0
    assert set(written["cold_items"]["ranker"].values()) == {None}
    assert written["warm_items"] == metrics["slices"]["warm_items"]


@pytest.mark.parametrize("partitions", [None, 3])
def test_a_run_whose_log_answers_to_no_partition_is_not_compared(run, tmp_path, partitions):
    other, said = RunDir(str(tmp_path / "before")), list[str]()
    if partitions is not None:
        write_log(other, read_log_table(run), partitions=partitions)
    write_manifest(other.root, Manifest(name="tiny", stages={"rank": StageEntry(state="complete")}))
    metrics = evaluated(run, said, previous=other.root).metrics
    assert {"previous", "update"} & metrics.keys() == set()
    assert metrics["ranker"] == evaluated(run).metrics["ranker"]
    assert any(f"{other.root} has no log in 1 partitions: it is not compared" in line for line in said)


def test_the_summary_stays_a_few_lines(run):
    stages = {"evaluate": StageEntry(state="complete", metrics=evaluated(run).metrics)}
    shown = summary(Manifest(name="tiny", stages=stages), run.root)
    assert "popularity" in shown
    assert "slices" not in shown
    assert len(shown.splitlines()) < 15


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_the_head_is_the_fewest_items_with_half_of_the_positives(positives):
    counts = np.array(positives, float)
    items = pa.table({"item": np.arange(len(counts)), "caption": [[n % 2, 5] for n in range(len(counts))]})
    found = ranker.slices(items, counts)
    assert found["cold_items"].tolist() == [n == 0 for n in range(len(counts))]
    assert found["with_caption"].tolist() == [n % 2 == 1 for n in range(len(counts))]
    for one, other in PAIRS:
        assert (found[one] ^ found[other]).all()
    head = counts[found["head_items"]]
    assert 2 * head.sum() >= counts.sum()
    assert not len(head) or 2 * (head.sum() - head.min()) < counts.sum()
    assert not len(head) or found["tail_items"].sum() == 0 or head.min() >= counts[found["tail_items"]].max()


def test_partitions_and_histograms_change_nothing_but_what_they_say(run):
    one = score(run, "whole")
    assert "auc_error" not in one["ranker"]
    binned = score(run, "binned", exact_rows=10)
    for scorer in SCORERS:
        error = binned[scorer].pop("auc_error")
        assert 0 < error < 0.05
        assert binned[scorer].pop("auc") == pytest.approx(one[scorer]["auc"], abs=error + 1e-12)
        assert binned[scorer] == {name: one[scorer][name] for name in binned[scorer]}
    log = read_log_table(run)
    write_log(run, log, partitions=3)
    files.remove(run.uri("features"))
    stage("features").run(features.Config(history=5, long_history=4), context_of(run, "parts"))
    assert len(files.parts(run.uri("features", "test"))) == 3
    parts, near = score(run, "parts"), 1e-7  # scores are float32, and batches of other rows add up in another order
    for scorer in SCORERS:
        assert parts[scorer].pop("auc_interval") == pytest.approx(one[scorer].pop("auc_interval"), abs=near)
        assert parts[scorer] == pytest.approx(one[scorer], abs=near)
    for slice_name, card in one["slices"].items():
        for scorer in SCORERS:
            assert parts["slices"][slice_name][scorer] == pytest.approx(card[scorer], abs=near, nan_ok=True)
    assert parts["retriever"] == one["retriever"]
    assert parts["auc_gain"]["interval"] == pytest.approx(one["auc_gain"]["interval"], abs=near)


def score(run: RunDir, name: str, **settings: int) -> dict[str, Any]:
    rows, metrics = ranker.score_ranker(context_of(run, name), recall_at=(5,), draws=20, **settings)
    assert rows == run.read_table("features", "test").num_rows
    return metrics


def test_a_truth_that_lacks_events_of_one_partition_is_no_truth(run):
    truth = files.read_table(run.uri("truth.parquet"))
    files.write_part(run.uri("truth.parquet"), truth.slice(0, truth.num_rows - 1))
    assert "truth" not in evaluated(run).metrics
