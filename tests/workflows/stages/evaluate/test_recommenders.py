from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommended, best
from models.recommenders.sasrec import SasRec, SasRecConfig
from operators.log.split import SplitLeaveLast
from storage import files
from storage.hashing import hash_order
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import read_log_table, write_log
from tests.serving.finished import ITEMS, write_run
from workflows.engine.registry import stage
from workflows.engine.stage import Context, Result
from workflows.stages.evaluate import recommenders
from workflows.stages.evaluate import stage as evaluate
from workflows.stages.evaluate.recommenders import judge

KEYS = [f"{name}@{at}" for at in (5, 10, 20) for name in ("recall", "ndcg")]


class Fixed:
    """Recommends in one random order to everyone, and remembers what it was asked."""

    def __init__(self, seed: int) -> None:
        self.scores = torch.tensor(np.random.default_rng(seed).random(ITEMS))
        self.banned: list[Jagged | None] = []

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        self.banned.append(banned)
        return best(self.scores.repeat(len(histories.offsets) - 1, 1), k=k, banned=banned, allowed=allowed)


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDir:
    """A run whose generate stage has fitted two recommenders."""
    run = write_run(tmp_path, labels=True)
    fitted = {"product_codes": Fixed(0), "sasrec": Fixed(1)}
    monkeypatch.setattr(recommenders, "load_recommender", lambda of, name: fitted[name])
    asked = {"history": 5, "repeats": False}
    valid: dict[str, dict] = {name: {} for name in fitted}
    written = {"chosen": "product_codes", "queries": asked, "valid": valid, "history": {}}
    run.write_json(written, "metrics", "generate.json")
    return run


def evaluated(run: RunDir, *stages: str, queries: int = 1_000, penalties: tuple[float, ...] = (), **changes) -> Result:
    complete = {stage: StageEntry(state="complete") for stage in stages}
    write_manifest(run.root, Manifest(name="tiny", stages={**complete, "evaluate": StageEntry(state="running")}))
    context = Context(run, run.root, 0, "f", log=lambda line: None, progress=lambda done, total: None)
    config = evaluate.Config(bootstrap=20, queries=queries, penalties=penalties)
    return stage("evaluate").run(config, replace(context, **changes))


def brute_popularity(run: RunDir, *, repeats: bool, masked: bool) -> tuple[list[float], list[bool]]:
    """NDCG@10 of the most popular items per query of a leave-last split, by loops over the log, and who is cold."""
    log = pl.from_arrow(read_log_table(run))
    names = run.read_table("embeddings")["item_id"].to_pylist()
    rows = {names[at]: row for row, at in enumerate(hash_order(names))}
    users: dict[str, list[tuple[int, int, float]]] = {}
    for event in log.sort("timestamp").iter_rows(named=True):
        stamp = int(event["timestamp"].timestamp() * 1e6)
        users.setdefault(event["user_id"], []).append((stamp, rows[event["item_id"]], event["label"]))
    train = [event for events in users.values() for event in (events[:-2] if len(events) > 2 else events)]
    positives = np.bincount([item for _, item, label in train if label], minlength=len(names))
    met = {item for _, item, _ in train}
    found, cold = [], []
    for *past, (_, target, label) in (events for events in users.values() if len(events) > 2):
        seen = {item for _, item, _ in past}
        if not label or (target in seen and not repeats):
            continue
        left_out = seen if masked else set()
        order = sorted(set(range(len(names))) - left_out, key=lambda item: (-positives[item], item))[:10]
        found.append(1 / np.log2(order.index(target) + 2) if target in order else 0.0)
        cold.append(target not in met)
    return found, cold


@pytest.mark.parametrize("repeats", [False, True])
def test_every_recommender_is_asked_for_the_test_positives(run, repeats):
    told = {**run.read_json("metrics", "generate.json"), "queries": {"history": 5, "repeats": repeats}}
    run.write_json(told, "metrics", "generate.json")
    files.remove(run.uri("features"))
    files.remove(run.uri("models", "ranker"))
    result = evaluated(run, "generate", split=SplitLeaveLast(kind="leave_last"))
    metrics = result.metrics
    baselines = ("sasrec", "content", "popularity")
    names = {"generator", "product_codes", "pipeline", *baselines}
    assert set(metrics) == names | {f"generator_over_{name}" for name in baselines}
    assert metrics["generator"] == metrics["product_codes"]
    assert set(KEYS) < metrics["content"].keys()
    expected, cold = brute_popularity(run, repeats=repeats, masked=not repeats)
    assert metrics["popularity"]["ndcg@10"] == pytest.approx(np.mean(expected))
    assert {metrics[name]["queries"] for name in names} == {len(expected)} == {result.rows_out}
    assert metrics["sasrec"]["cold_queries"] == sum(cold)
    asked = recommenders.load_recommender(run, "product_codes").banned
    assert asked.count(None) == 1  # once, for both judgements; the others are the pipeline's
    assert run.read_json("metrics", "evaluate.json")["sasrec"]["recall@20"] == metrics["sasrec"]["recall@20"]


def test_the_same_queries_are_judged_once_more_with_seen_items_left_in(run):
    found = evaluated(run, "generate", split=SplitLeaveLast(kind="leave_last")).metrics
    expected, _ = brute_popularity(run, repeats=False, masked=False)
    as_is = {name: card["as_is"] for name, card in found.items() if name != "pipeline"}
    assert as_is["popularity"]["ndcg@10"] == pytest.approx(np.mean(expected))
    assert as_is["popularity"]["ndcg@10"] < found["popularity"]["ndcg@10"]
    assert as_is["generator"] == as_is["product_codes"]
    for name in ("product_codes", "sasrec", "content", "popularity"):
        assert as_is[name].keys() == found[name].keys() - {"as_is"}
        assert as_is[name]["queries"] == found[name]["queries"] == len(expected)
    ratio = as_is["product_codes"]["recall@10"] / as_is["sasrec"]["recall@10"]
    assert as_is["generator_over_sasrec"]["recall@10"] == pytest.approx(ratio)


def test_the_place_of_every_next_item_is_kept_for_those_who_pool_seeds(run):
    found = evaluated(run, "generate", split=SplitLeaveLast(kind="leave_last")).metrics
    kept = pl.from_arrow(run.read_table("metrics", "ranks"))
    assert kept.columns == ["user", "item", "product_codes", "sasrec", "content", "popularity"]
    for name in kept.columns[2:]:
        assert (kept[name] > 0).mean() == found[name]["recall@20"]


def test_the_line_of_scores_holds_scores_and_no_ratios(run):
    lines: list[str] = []
    found = evaluated(run, "generate", split=SplitLeaveLast(kind="leave_last"), log=lines.append).metrics
    line = next(line for line in lines if line.startswith("NDCG@10: "))
    assert line.count(",") + 1 == len([name for name in found if "_over_" not in name])
    assert "_over_" not in line


def test_without_a_mask_nothing_is_judged_twice(run):
    told = {**run.read_json("metrics", "generate.json"), "queries": {"history": 5, "repeats": True}}
    run.write_json(told, "metrics", "generate.json")
    assert not [name for name, card in evaluated(run, "generate").metrics.items() if "as_is" in card]


def test_the_truth_is_the_ceiling_of_both_and_is_judged_once(run, monkeypatch):
    def true_lists(*args, k: int, banned: Jagged | None) -> Recommended:
        users = len(args[3])
        assert banned is not None
        return Fixed(2).recommend(Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(users + 1)), k=k, banned=banned)

    monkeypatch.setattr(recommenders, "true_lists", true_lists)
    found = evaluated(run, "generate").metrics
    assert "as_is" not in found["truth"]
    assert "as_is" not in found["gap_closed"]
    assert {"generator", "sasrec", "popularity"} <= {name for name, card in found.items() if "as_is" in card}


def test_an_ensemble_is_set_against_its_members(run, monkeypatch):
    weights = {"sasrec": 0.25, "product_codes": 0.75}
    told = run.read_json("metrics", "generate.json")
    valid = {**told["valid"], "ensemble": {}}
    run.write_json({**told, "valid": valid, "ensemble": weights}, "metrics", "generate.json")
    fitted = {name: Fixed(seed) for seed, name in enumerate(valid)}
    monkeypatch.setattr(recommenders, "load_recommender", lambda of, name: fitted[name])
    found = evaluated(run, "generate").metrics
    assert found["ensemble"]["weights"] == weights
    assert {name for name in found if name.startswith("ensemble_over")} == {f"ensemble_over_{name}" for name in weights}
    for cards in (found, {name: card["as_is"] for name, card in found.items() if name != "pipeline"}):
        ratio = cards["ensemble"]["recall@10"] / cards["sasrec"]["recall@10"]
        assert cards["ensemble_over_sasrec"]["recall@10"] == pytest.approx(ratio)


def test_penalties_on_popularity_are_tried_on_validation(run, monkeypatch):
    def sasrec() -> SasRec:
        torch.manual_seed(0)
        return SasRec(SasRecConfig(dim=4, heads=1, layers=1, inner=4), torch.ones(ITEMS, dtype=torch.int64)).eval()

    fitted = {"product_codes": sasrec(), "sasrec": Fixed(1)}
    monkeypatch.setattr(recommenders, "load_recommender", lambda of, name: fitted[name])
    found = evaluated(run, "generate", penalties=(0.0, 0.5, 5.0, 50.0), split=SplitLeaveLast(kind="leave_last")).metrics
    curve = found["product_codes"]["penalties"]
    assert found["generator"] == found["product_codes"]
    assert "penalties" not in found["sasrec"]
    assert [point["penalty"] for point in curve] == [0.0, 0.5, 5.0, 50.0]
    assert all(point.keys() == {"penalty", *recommenders.TRADED} for point in curve)
    biases = [point["popularity_bias@10"] for point in curve]
    assert biases[0] > biases[-1] == min(biases)
    assert curve[0]["fair_0.8@10"] < curve[-1]["fair_0.8@10"]
    written = run.read_json("metrics", "evaluate.json")
    evaluated(run, "generate", split=SplitLeaveLast(kind="leave_last"))
    plain = run.read_json("metrics", "evaluate.json")["product_codes"]
    assert plain == {key: value for key, value in written["product_codes"].items() if key != "penalties"}


def test_a_ranker_and_a_generator_are_scored_as_each_alone(run):
    def written(*stages: str) -> dict:
        evaluated(run, *stages)
        return run.read_json("metrics", "evaluate.json")

    both, ranker, generator = written("rank", "generate"), written("rank"), written("generate")
    assert {"ranker", "retriever", "slices"} < ranker.keys()
    assert ranker.keys() & generator.keys() == {"popularity"}
    assert not ranker["popularity"].keys() & generator["popularity"].keys()
    pipelines = [found.pop("pipeline")["weights"].keys() for found in (both, generator)]
    assert pipelines[0] == pipelines[1] | {"ranker"}
    assert both == {**ranker, **generator, "popularity": {**ranker["popularity"], **generator["popularity"]}}


def test_a_sample_of_the_queries_may_do(run):
    every, few = (evaluated(run, "generate", queries=queries) for queries in (1_000, 7))
    assert few.rows_out == few.metrics["sasrec"]["queries"] == 7 < every.rows_out


def test_a_split_without_a_query_scores_nobody(run):
    log = pl.from_arrow(read_log_table(run))
    last = log["timestamp"].quantile(0.85, "nearest")
    disliked = pl.when(pl.col("timestamp") > last).then(0.0).otherwise(pl.col("label")).cast(pl.Float32)
    write_log(run, log.with_columns(label=disliked).to_arrow())
    result = evaluated(run, "generate")
    assert (result.rows_out, result.metrics) == (0, {})


def asked(users: int, items: np.ndarray) -> Queries:
    """One query per user for the first item of a list."""
    nothing = Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(users + 1, dtype=torch.int64))
    return Queries(np.arange(users), nothing, torch.from_numpy(items[:, 0].copy()), nothing)


def as_recommended(lists: dict[str, np.ndarray]) -> dict[str, Recommended]:
    return {
        name: Recommended(torch.from_numpy(items), torch.zeros(items.shape), exact=None)
        for name, items in lists.items()
    }


def test_the_generator_is_set_against_baselines_by_paired_ratios():
    random = np.random.default_rng(0)
    items = np.stack([random.permutation(50)[:20] for _ in range(40)])
    late = np.roll(items, 1, axis=1)
    late[::2] = -1  # every second user gets nothing, the others their item in the second place
    lists = {"product_codes": late, "sasrec": items, "content": late.copy(), "popularity": np.full_like(items, -1)}
    found = judge(
        as_recommended(lists), asked(40, items), np.ones(50), np.zeros(50, bool), chosen="product_codes", seed=0
    )
    over = found["generator_over_sasrec"]
    assert over["recall@10"] == 0.5
    assert over["ndcg@10"] == pytest.approx(0.5 / np.log2(3))
    low, high = over["recall@10_interval"]
    assert 0.25 < low < 0.5 < high < 0.75
    assert found["generator_over_content"]["ndcg@10_interval"] == [1.0, 1.0]  # hits and misses are shared
    assert np.isnan(found["generator_over_popularity"]["recall@10"])
    assert np.isnan(found["generator_over_popularity"]["recall@10_interval"]).all()
    assert found["sasrec"]["recall@10_interval"] == [1.0, 1.0]


def test_the_truth_tells_how_much_of_the_gap_to_it_is_closed():
    """Nobody gets their item from popularity, every second user from SASRec, and three of four from the truth."""
    items = np.stack([np.random.default_rng(seed).permutation(50)[:20] for seed in range(400)])
    half, most = items.copy(), items.copy()
    half[::2], most[::4] = -1, -1
    lists = {"sasrec": half, "popularity": np.full_like(items, -1), "truth": most}
    found = judge(as_recommended(lists), asked(400, items), np.ones(50), np.zeros(50, bool), chosen="sasrec", seed=0)
    assert found["gap_closed"]["sasrec"] == pytest.approx(2 / 3)
    low, high = found["gap_closed"]["sasrec_interval"]
    assert 0.5 < low < 2 / 3 < high < 0.8
    assert set(found["gap_closed"]) == {"sasrec", "sasrec_interval"}


def test_intervals_shrink_with_users():
    random = np.random.default_rng(0)
    widths = []
    for users in (30, 480):
        items = np.stack([random.permutation(40)[:20] for _ in range(users)])
        items[random.random(users) < 0.5, 0] = -1
        test = asked(users, np.where(items < 0, 0, items))
        lists = as_recommended({"product_codes": items})
        found = judge(lists, test, np.ones(40), np.zeros(40, bool), chosen="product_codes", seed=0)
        low, high = found["generator"]["ndcg@10_interval"]
        assert low < found["generator"]["ndcg@10"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_lists_of_a_search_tell_how_many_are_proved_to_be_exact():
    items = np.stack([np.random.default_rng(seed).permutation(30)[:20] for seed in range(4)])
    lists = as_recommended({"language_model": items, "sasrec": items})
    lists["language_model"] = lists["language_model"]._replace(exact=torch.tensor([True, False, True, True]))
    found = judge(lists, asked(4, items), np.ones(30), np.zeros(30, bool), chosen="language_model", seed=0)
    assert found["language_model"]["exact_lists"] == found["generator"]["exact_lists"] == 0.75
    assert "exact_lists" not in found["sasrec"]
