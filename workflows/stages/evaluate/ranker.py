"""Measures the ranker and its candidates on the test split, partition by partition.

Every partition is scored by a piece of work of its own (`score_part`), whose sums add up. What is larger is handed on
in files: histograms of resamples; scores while they are few enough for an exact AUC, beyond that histograms of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.evaluation.bootstrap import RESAMPLED_BINS, histogram_aucs, interval, resampled_histograms
from models.evaluation.clicks import EXACT_ROWS, Sums, auc, binned_scores, histogram
from models.evaluation.lists import head
from operators.features.tokens import NULL_ID
from operators.log.events import DAY_US
from operators.log.partitions import Part, item_ids, open_log, read_user_ids, rows_among
from storage import files
from storage.run import RunDir
from workflows.engine.previous import has_finished
from workflows.engine.stage import Context

if TYPE_CHECKING:
    import torch

SCORERS = ("ranker", "previous", "popularity", "truth")
EVERY = "every"  # the slice of all items
COUNTED_ROWS = 1 << 20  # examples of training that are held at once


@dataclass(frozen=True)
class Work:
    """What every piece has to know.

    Attributes:
        root, catalog: URIs of the run and of its catalogue.
        folder: URI of what the pieces hand on.
        popularity: probability of a positive per item, float64 [N].
        positives: per item in training, [N].
        slices: of the catalogue, bool [N] each, see `slices`; EVERY is one of them.
        weight: of popularity among the retriever's candidates.
        recall_at: numbers of candidates.
        exact: whether scores are handed on.
        previous: URI of the run before, if its ranker is scored, too.
        seed, draws: of the resamples.
    """

    root: str
    catalog: str
    folder: str
    popularity: np.ndarray
    positives: np.ndarray
    slices: dict[str, np.ndarray]
    weight: float
    recall_at: tuple[int, ...]
    exact: bool
    seed: int
    draws: int
    previous: str | None = None

    def uri(self, kind: str, number: int) -> str:
        """Returns the URI of a file that a piece hands on: `scores` or `resamples`."""
        return files.part_uri(files.join(self.folder, kind), number)


def score_ranker(
    context: Context,
    *,
    recall_at: tuple[int, ...],
    draws: int,
    exact_rows: int = EXACT_ROWS,
    previous: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """Metrics of the ranker, of popularity and of the truth where it is known, by slices, too, and of the retriever.

    The retriever finds the ranker's candidates by content and popularity together. It is not the recommender `content`,
    which has another decay and no popularity, and whose recall has the same keys.

    Args:
        context: of a run whose rank stage is complete.
        recall_at: numbers of the retriever's candidates.
        draws: resamples of users behind every interval.
        exact_rows: test examples up to which AUC is exact; beyond that it comes from histograms, and auc_error says by
            how much it is off at most.
        previous: URI of the run before; its ranker is scored, too, where it reads what these examples have.

    Returns:
        The number of test examples and the metrics.
    """
    from models.ranking.popularity import fit_popularity

    run, name = context.run, f"evaluate/{context.fingerprint}/ranker"
    described = run.read_table("features", "items", columns=["item", "caption"])
    items = described.num_rows
    columns = ["row", "label", "timestamp", "item_age"]
    train, valid = (files.batches(run.uri("features", name), columns, COUNTED_ROWS) for name in ("train", "valid"))
    positives, exposure = training_counts(train, items, labelled=run.read_json("features", "spec.json")["labels"])
    liked, shown = training_counts(valid, items, labelled=True)
    sizes = [files.dataset(uri).count_rows() for uri in files.parts(run.uri("features", "test"))]
    numbers = [number for number, rows in enumerate(sizes) if rows]
    work = Work(
        root=run.root,
        catalog=context.catalog,
        folder=run.uri("checkpoints", name),
        popularity=fit_popularity(positives, exposure, valid=(liked, shown - liked)).probability,
        positives=positives,
        slices={EVERY: np.ones(items, dtype=bool), **slices(described, positives)},
        weight=run.read_json("models", "retriever", "config.json")["popularity_weight"],
        recall_at=recall_at,
        exact=sum(sizes) <= exact_rows,
        seed=context.seed,
        draws=draws,
        previous=previous if has_finished(previous, "rank") else None,
    )
    open_log(run)  # before pieces that would all count its events
    found = context.pieces(partial(score_part, work), numbers, name=name, here=len(sizes) == 1)
    if (scored := sum(part["rows"] for part in found)) != sum(sizes):
        raise RuntimeError(f"{scored} of {sum(sizes)} test examples were scored")
    scorers = [scorer for scorer in SCORERS if all(scorer in part["sums"][EVERY] for part in found)]
    sums = {
        (members, scorer): Sums(*map(sum, zip(*(part["sums"][members][scorer] for part in found), strict=True)))
        for members in work.slices
        for scorer in scorers
    }
    aucs = _aucs(work, numbers, scorers)
    cards = {key: {**aucs[key], **each.metrics()} for key, each in sums.items()}
    samples = {scorer: histogram_aucs(_resamples(work, numbers, scorer)) for scorer in scorers}
    metrics: dict[str, Any] = {
        scorer: {**cards[EVERY, scorer], "auc_interval": interval(samples[scorer])} for scorer in scorers
    }
    for key, other in (("auc_gain", "popularity"), ("auc_over_previous", "previous")):
        if other in samples:
            mean = metrics["ranker"]["auc"] - metrics[other]["auc"]
            bounds = interval(samples["ranker"] - samples[other])
            metrics[key] = {"over": other, "mean": mean, "interval": bounds}
    metrics["slices"] = {
        members: {
            "rows": int(sums[members, "ranker"].rows),
            "positives": int(sums[members, "ranker"].positives),
            **{scorer: cards[members, scorer] for scorer in scorers},
        }
        for members in work.slices
        if members != EVERY
    }
    hits = {key: sum(part["retriever"][key] for part in found) for key in found[0]["retriever"]}
    asked = float(hits.pop("queries"))
    recalls = {key: count / asked if asked else float("nan") for key, count in hits.items()}
    metrics["retriever"] = {"queries": asked, **recalls}
    return scored, metrics


def score_part(work: Work, number: int) -> dict[str, Any]:
    """Scores the test examples of a partition; writes scores or histograms of them, and histograms of resamples.

    Returns:
        `rows`; `sums` by slice and scorer, see `Sums`; `retriever`, see `retrieval`.
    """
    from models.ranking.ranker import load_ranker
    from operators.features.ranker_inputs import Examples, predict, read_items
    from workflows.catalogs.synthetic.truth import true_probability  # imports what draws pictures

    run = RunDir(work.root)
    ranker = load_ranker(run.uri("models", "ranker"))
    items = read_items(run, ranker.config)
    test = files.read_table(files.parts(run.uri("features", "test"))[number])
    label, row, user = (test[name].to_numpy() for name in ("label", "row", "user_hash"))
    scores = {"ranker": predict(ranker, items, Examples(test, ranker.config.dense)), "popularity": work.popularity[row]}
    if work.previous is not None:
        from workflows.stages.evaluate.previous import earlier_probabilities

        before = earlier_probabilities(RunDir(work.previous), run, test, number)
        scores |= {} if before is None else {"previous": before}
    truth = true_probability(work.catalog, with_ids(run, test))
    if truth is not None:
        scores["truth"] = truth
    held = {members: among[row] for members, among in work.slices.items()}
    resamples = {
        name: resampled_histograms(user, label, score, seed=work.seed, draws=work.draws).reshape(-1)
        for name, score in scores.items()
    }
    files.write_part(work.uri("resamples", number), pa.table(resamples))
    kept = {"label": label, "row": row, **scores}
    if not work.exact:
        kept = {
            f"{members}/{name}": histogram(label[among], score[among]).reshape(-1)
            for members, among in held.items()
            for name, score in scores.items()
        }
    files.write_part(work.uri("scores", number), pa.table(kept))
    return {
        "rows": test.num_rows,
        "sums": {
            members: {name: Sums.of(user[among], label[among], score[among]) for name, score in scores.items()}
            for members, among in held.items()
        },
        "retriever": retrieval(
            items.embedding, test, open_log(run).part(number), work.positives, work.recall_at, weight=work.weight
        ),
    }


def _aucs(work: Work, numbers: list[int], scorers: list[str]) -> dict[tuple[str, str], dict[str, float]]:
    """Returns the AUC of every slice and scorer from what the pieces have written."""
    keys = [(members, scorer) for members in work.slices for scorer in scorers]
    if work.exact:
        table = pa.concat_tables(files.read_table(work.uri("scores", n), ["label", "row", *scorers]) for n in numbers)
        label, row, scores = table["label"].to_numpy(), table["row"].to_numpy(), table.select(scorers)
        among = {members: rows[row] for members, rows in work.slices.items()}
        return {
            (members, scorer): {"auc": auc(label[among[members]], scores[scorer].to_numpy()[among[members]])}
            for members, scorer in keys
        }
    counts = {key: np.int64(0) for key in keys}
    for number in numbers:
        part = files.read_table(work.uri("scores", number))
        counts = {key: each + part["/".join(key)].to_numpy() for key, each in counts.items()}
    return {key: binned_scores(each.reshape(2, -1)) for key, each in counts.items()}


def _resamples(work: Work, numbers: list[int], scorer: str) -> np.ndarray:
    """Returns the histograms of a scorer's resamples over all partitions, int64 [draws, 2, RESAMPLED_BINS]."""
    parts = (files.read_table(work.uri("resamples", number), [scorer])[scorer].to_numpy() for number in numbers)
    counts: np.ndarray = sum(parts, np.zeros(work.draws * 2 * RESAMPLED_BINS, np.int64))
    return counts.reshape(work.draws, 2, RESAMPLED_BINS)


def with_ids(run: RunDir, examples: pa.Table) -> pa.Table:
    """Returns examples with the columns user_id and item_id."""
    users = read_user_ids(run, examples["user_hash"].to_numpy())
    return examples.append_column("user_id", users).append_column("item_id", item_ids(run).take(examples["row"]))


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
    popular = head(positives, 0.5)
    return {
        "cold_items": ~warm,
        "warm_items": warm,
        "head_items": popular,
        "tail_items": ~popular,
        "with_caption": captioned,
        "without_caption": ~captioned,
    }


def training_counts(parts: Iterable[pa.Table], items: int, *, labelled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positives per item in training, and its exposure: impressions, or without labels days on offer; [items] each.

    Without labels an item counts as on offer from its first event, which is no example, to the end of training, for a
    day at least.

    Args:
        parts: row, label, timestamp and item_age of the examples.
        items: how many there are.
        labelled: whether the log has labels.
    """
    positives, rows, first, last = np.zeros(items), np.zeros(items), np.full(items, np.inf), -np.inf
    for train in parts:
        row, positive = train["row"].to_numpy(), train["label"].to_numpy() > 0
        positives += np.bincount(row[positive], minlength=items)
        rows += np.bincount(row, minlength=items)
        if not labelled and len(row):
            time = train["timestamp"].cast(pa.int64()).to_numpy()
            np.minimum.at(first, row, time - np.expm1(train["item_age"].to_numpy()) * DAY_US)
            last = max(last, float(time.max()))
    if labelled:
        return positives, rows
    days = (last - np.minimum(first, last)) / DAY_US
    return positives + (rows > 0), np.maximum(days, 1) * (rows > 0)


def retrieval(
    embedding: torch.Tensor,
    test: pa.Table,
    part: Part,
    popularity: np.ndarray,
    recall_at: tuple[int, ...],
    *,
    weight: float,
) -> dict[str, int]:
    """Counts the test positives of a partition that its candidates hold, in the whole catalogue less what users had.

    Args:
        embedding: of the items, float32 [N, D].
        test: examples of the partition.
        part: of the log, the same partition.
        popularity: training positives per item, [N].
        recall_at: numbers of candidates.
        weight: of popularity among them.

    Returns:
        `queries`, the test positives that were new to their user; recall@K, those of them that are among the first K
        candidates; popularity_recall@K, the same with the popularity order for everyone.

    Raises:
        RuntimeError: the examples are of another partition.
    """
    import torch

    from models.common.jagged import Jagged, from_arrays
    from models.common.recommender import recommended
    from models.recommenders.content import content_and_popularity
    from operators.columns import jagged_of
    from operators.log.events import histories

    test = test.filter(pc.greater(test["label"], 0))
    user, known = rows_among(part.users, test["user_hash"].to_numpy())
    if not known.all():
        raise RuntimeError("a partition of features/test holds users that the same one of the log lacks")
    history = jagged_of(test["history"])
    time = test["timestamp"].cast(pa.int64()).to_numpy()
    seen = from_arrays(*histories(part.events, user, time, length=len(part.events)))
    target = torch.from_numpy(test["row"].to_numpy().astype(np.int64))

    content = content_and_popularity(embedding, torch.from_numpy(popularity), weight)
    k = max(recall_at)
    candidates = recommended(content, history, k=k, banned=seen)
    no_history = Jagged(history.values[:0], torch.zeros(len(target) + 1, dtype=torch.int64))
    popular = recommended(content, no_history, k=k, banned=seen)
    owner = torch.repeat_interleave(torch.arange(len(target)), seen.offsets.diff())
    new = torch.ones(len(target), dtype=torch.bool)
    new[owner[seen.values == target[owner]]] = False
    found = {"queries": int(new.sum())}
    for prefix, best in (("", candidates), ("popularity_", popular)):
        hits = (torch.from_numpy(best) == target[:, None])[new]
        found |= {f"{prefix}recall@{at}": int(hits[:, :at].any(1).sum()) for at in recall_at}
    return found
