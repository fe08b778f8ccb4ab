"""Evaluate, on the test split: the ranker, its candidates, the recommenders of next items, and their baselines.

Reads what rank or generate wrote, or both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveInt

from models.evaluation.bootstrap import bootstrap_auc, interval
from models.evaluation.clicks import scorecard
from operators.features.tokens import NULL_ID
from operators.log.encoding import Log, read_log
from operators.log.events import DAY_US
from storage.manifest import first_unfinished
from workflows.engine.stage import Context, Result, Stage, StageConfig
from workflows.engine.text import decimal

if TYPE_CHECKING:
    import torch


class Config(StageConfig):
    """Settings of the evaluate stage."""

    queries: PositiveInt | None = Field(None, description="queries of the test split, at most; null: all")
    recall_at: tuple[PositiveInt, ...] = Field((10, 50), min_length=1)
    bootstrap: int = Field(200, ge=10, description="resamples of users behind every interval")


class EvaluateStage(Stage[Config]):
    """Measures the ranker, the recommenders and their baselines on the test split."""

    config_type = Config
    version = 5
    reads = ("ingest", "project")
    reads_one_of = ("rank", "generate")
    reads_all = True

    def run(self, config: Config, context: Context) -> Result:
        """Scores the test split and writes metrics/evaluate.json."""
        there = [stage for stage in self.reads_one_of if first_unfinished(context.run.root, (stage,)) is None]
        metrics: dict[str, Any] = {}
        rows = 0
        if "rank" in there:
            rows, metrics = score_ranker(config, context)
        if "generate" in there:
            from workflows.stages.evaluate.recommenders import score_recommenders, score_tasks

            cards = score_recommenders(context, queries=config.queries, draws=config.bootstrap)
            rows += cards.get("popularity", {}).get("queries", 0)
            metrics |= {name: {**metrics.get(name, {}), **values} for name, values in cards.items()}
            metrics |= {"tasks": tasks} if (tasks := score_tasks(context)) else {}
        context.run.write_json(metrics, "metrics", "evaluate.json")
        for key in ("auc", "ndcg@10"):
            if scores := [f"{name} {decimal(values[key])}" for name, values in metrics.items() if key in values]:
                context.log(f"{key.upper()}: {', '.join(scores)}")
        return Result(rows_in=rows, rows_out=rows, metrics=metrics)


def score_ranker(config: Config, context: Context) -> tuple[int, dict[str, Any]]:
    """Metrics of the ranker, of popularity and of the truth where it is known, by slices, too, and of the retriever.

    The retriever finds the ranker's candidates by content and popularity together. It is not the recommender `content`,
    which has another decay and no popularity, and whose recall has the same keys.

    Returns:
        The number of test examples and the metrics.
    """
    from models.ranking.popularity import fit_popularity
    from models.ranking.ranker import load_ranker
    from operators.features.ranker_inputs import Examples, ItemFeatures, predict
    from workflows.catalogs.synthetic.truth import true_probability  # imports what draws pictures

    run = context.run
    spec = run.read_json("features", "spec.json")
    ranker = load_ranker(run.uri("models", "ranker"))
    items = ItemFeatures(run.read_table("features", "items"), run.read_table("embeddings"), ranker.config)
    tables = {name: run.read_table("features", name) for name in ("train", "valid", "test")}
    test = tables["test"]
    log = read_log(run)
    label = test["label"].to_numpy()
    user = test["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()

    valid = tables["valid"]
    positives, exposure = training_counts(tables["train"], len(items), labelled=spec["labels"])
    baseline = fit_popularity(positives, exposure, valid=(valid["row"].to_numpy(), valid["label"].to_numpy()))
    scores = {
        "ranker": predict(ranker, items, Examples(test, ranker.config.dense)),
        "popularity": baseline.probability[test["row"].to_numpy()],
    }
    truth = true_probability(context.catalog, test)
    if truth is not None:
        scores["truth"] = truth
    samples = bootstrap_auc((user,), label, scores, seed=context.seed, draws=config.bootstrap)
    metrics: dict[str, Any] = {
        name: {**scorecard(user, label, score), "auc_interval": interval(samples[name])}
        for name, score in scores.items()
    }
    metrics["auc_gain"] = {
        "over": "popularity",
        "mean": metrics["ranker"]["auc"] - metrics["popularity"]["auc"],
        "interval": interval(samples["ranker"] - samples["popularity"]),
    }
    described = run.read_table("features", "items", columns=["item", "caption"])
    row, metrics["slices"] = test["row"].to_numpy(), {}
    for name, members in slices(described, positives).items():
        rows = members[row]
        metrics["slices"][name] = {
            "rows": int(rows.sum()),
            "positives": int((label[rows] > 0).sum()),
            **{scorer: scorecard(user[rows], label[rows], score[rows]) for scorer, score in scores.items()},
        }
    weight = run.read_json("models", "retriever", "config.json")["popularity_weight"]
    metrics["retriever"] = retrieval(items.embedding, test, log, positives, config.recall_at, weight=weight)
    return test.num_rows, metrics


def slices(items: pa.Table, positives: np.ndarray) -> dict[str, np.ndarray]:
    """Pairs of complementary slices of the catalogue, boolean [items] each.

    cold_items, warm_items: no event in training, or some; head_items, tail_items: the fewest items that hold half of
    the training positives, and the rest; with_caption, without_caption.

    Args:
        items: `item` and `caption` of features/items.
        positives: per item in training, [items].
    """
    warm = items["item"].to_numpy() != NULL_ID
    captioned = pc.list_element(items["caption"], 0).to_numpy() != NULL_ID
    order = np.argsort(-positives, kind="stable")
    ahead = np.cumsum(positives[order]) - positives[order]  # what more popular items hold
    head = np.zeros(len(positives), dtype=bool)
    head[order] = ahead < positives.sum() / 2
    return {
        "cold_items": ~warm,
        "warm_items": warm,
        "head_items": head,
        "tail_items": ~head,
        "with_caption": captioned,
        "without_caption": ~captioned,
    }


def training_counts(train: pa.Table, items: int, *, labelled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positives per item in training, and its exposure: impressions, or without labels days on offer; [items] each.

    Without labels an item counts as on offer from its first event, which is no example, to the end of training, for a
    day at least.
    """
    row, positive = train["row"].to_numpy(), train["label"].to_numpy() > 0
    positives = np.bincount(row[positive], minlength=items).astype(np.float64)
    rows = np.bincount(row, minlength=items).astype(np.float64)
    if labelled:
        return positives, rows
    time = train["timestamp"].cast(pa.int64()).to_numpy()
    first = np.full(items, time.max(), dtype=np.float64)
    np.minimum.at(first, row, time - np.expm1(train["item_age"].to_numpy()) * DAY_US)
    return positives + (rows > 0), np.maximum((time.max() - first) / DAY_US, 1) * (rows > 0)


def retrieval(
    embedding: torch.Tensor,
    test: pa.Table,
    log: Log,
    popularity: np.ndarray,
    recall_at: tuple[int, ...],
    *,
    weight: float,
) -> dict[str, float]:
    """recall@K of the test positives that were new to their user, in the whole catalogue less what the user had.

    Also `popularity_recall@K`, the same with the popularity order for everyone. NaN where there is no such positive.
    """
    import torch

    from models.common.jagged import Jagged, from_arrays
    from models.common.recommender import recommended
    from models.recommenders.content import content_and_popularity
    from operators.columns import jagged_of, positions
    from operators.log.events import histories

    test = test.filter(pc.greater(test["label"], 0))
    user = positions(test["user_id"], log.users)
    history = jagged_of(test["history"])
    time = test["timestamp"].cast(pa.int64()).to_numpy()
    seen = from_arrays(*histories(log.events, user, time, length=len(log.events)))
    target = torch.from_numpy(test["row"].to_numpy().astype(np.int64))

    content = content_and_popularity(embedding, torch.from_numpy(popularity), weight)
    k = max(recall_at)
    candidates = recommended(content, history, k=k, banned=seen)
    no_history = Jagged(history.values[:0], torch.zeros(len(target) + 1, dtype=torch.int64))
    popular = recommended(content, no_history, k=k, banned=seen)
    owner = torch.repeat_interleave(torch.arange(len(target)), seen.offsets.diff())
    new = torch.ones(len(target), dtype=torch.bool)
    new[owner[seen.values == target[owner]]] = False
    metrics = {"queries": float(new.sum())}
    for prefix, best in (("", candidates), ("popularity_", popular)):
        hits = (torch.from_numpy(best) == target[:, None])[new]
        metrics |= {f"{prefix}recall@{at}": float(hits[:, :at].any(1).float().mean()) for at in recall_at}
    return metrics
