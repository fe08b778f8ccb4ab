"""Chooses, on validation, how the service's pipeline scores candidates, and measures its lists on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models.common.jagged import gather, repeated
from models.common.recommender import Queries, Recommender
from models.evaluation.bootstrap import bootstrap_means, interval, ratio
from models.evaluation.clicks import auc
from models.evaluation.lists import CUT, CUTS, ndcg, ranks, recall, scorecard
from models.recommenders.ensemble import shares
from models.recommenders.item_knn import ItemKnn
from operators.log.sequences import Training
from serving.candidates import SMOOTHING, quotas
from serving.cascade import CONTENT, PIPELINE, RANKER, Blend, Cascade, Ranked
from serving.ranking import Users
from workflows.engine.stage import Context

BLOCK = 64  # users whose candidates are scored at once
PARTS = 5  # weights are multiples of its inverse
SMOOTHINGS = (SMOOTHING, 20.0, 5.0)  # of places in lists, tried; of equally good ones the first counts
GAIN = f"ndcg@{CUT}"
METRICS = {f"recall@{CUT}": recall, GAIN: ndcg}


def score_pipeline(
    context: Context,
    valid: Queries,
    test: Queries,
    singles: Mapping[str, np.ndarray],
    fitted: Mapping[str, Recommender],
    *,
    chosen: str,
    popular: torch.Tensor,
    training: Training,
    repeats: bool,
    draws: int,
) -> dict[str, Any]:
    """Chooses the weights of the recommenders' and the ranker's lists and measures the pipeline.

    The users of queries are visitors to the pipeline: it knows the history that the query tells, as in a request with a
    history. What is known of items is what training says of them, as the events that are asked for come later; the
    service knows the whole log. Who has no history gets popular items. Weights are multiples of a fifth; those with the
    highest NDCG@10 on validation win, of equally good ones the most even.

    Args:
        context: of the run.
        valid, test: queries; all of them are asked.
        singles: by recommender, where its lists for the test queries hold the target; see `ranks`.
        fitted: the recommenders that the run has fitted.
        chosen: the recommender that counts as the generator.
        popular: lists of the most popular items for the test queries, rows int64 [Q, 20].
        training: what the training part of the log says of items.
        repeats: whether users choose the same items again, so that no seen item is left out.
        draws: resamples of users behind intervals.

    Returns:
        `recommenders`, `weights` and `smoothing`, see `serving.cascade.Blend`; the scorecard of the lists, with
        intervals of recall and NDCG at 10; `best`, the name of the best single recommender on the same queries,
        `over_best`, the ratio of the NDCG@10 of both, and its interval; `list_auc`, the AUC of the ranker's
        probabilities within the lists of ten, an item being positive where it was chosen next; null without a ranker.
    """
    cascade = Cascade(context.run, fitted=fitted, training=training)
    names = [name for name in dict.fromkeys([chosen, ItemKnn.kind, CONTENT]) if name in cascade.recommenders]
    wanted = quotas(names, cascade.candidates)
    lists = [*names, *([RANKER] if cascade.ranker else [])]
    ranked = _ranked(cascade, valid, wanted, repeats=repeats)

    def gain(blend: Blend) -> float:
        cascade.blend = blend
        found = _best(ranked, cascade.scores(ranked, wanted))
        return float(ndcg(ranks(found.numpy(), valid.target.numpy()), CUT).mean())

    tried = [
        Blend(wanted, dict(zip(lists, weights, strict=True)), smoothing)
        for smoothing in SMOOTHINGS
        for weights in shares(len(lists), PARTS)
    ]
    cascade.blend = max(tried, key=gain) if len(valid.user) else tried[0]
    context.log("pipeline: " + ", ".join(f"{name} {weight:g}" for name, weight in cascade.blend.weights.items()))

    ranked = _ranked(cascade, test, wanted, repeats=repeats)
    scores = cascade.scores(ranked, wanted)
    items, target = _best(ranked, scores), test.target.numpy()
    new = test.histories.offsets.diff() == 0
    items[new] = popular[new, : items.shape[1]]
    best = max(singles, key=lambda name: float(ndcg(singles[name], CUT).mean()))
    places = {PIPELINE: ranks(items.numpy(), target), best: singles[best]}
    values = {(name, key): metric(found, CUT) for name, found in places.items() for key, metric in METRICS.items()}
    samples = bootstrap_means(test.user, values, seed=context.seed, draws=draws)
    return {
        "recommenders": names,
        "weights": cascade.blend.weights,
        "smoothing": cascade.blend.smoothing,
        **scorecard(items.numpy(), target, training.positives, ~training.warm),
        **{f"{key}_interval": interval(samples[PIPELINE, key]) for key in METRICS},
        "best": best,
        "over_best": float(ratio(values[PIPELINE, GAIN].mean(), values[best, GAIN].mean())),
        "over_best_interval": interval(ratio(samples[PIPELINE, GAIN], samples[best, GAIN])),
        "list_auc": _list_auc(ranked, scores, test.target) if cascade.ranker else None,
    }


def _ranked(cascade: Cascade, queries: Queries, wanted: Mapping[str, int], *, repeats: bool) -> Ranked:
    """Returns the candidates of all queries, found and scored block by block."""
    parts = []
    for rows in torch.arange(len(queries.user)).split(BLOCK):
        histories, seen = gather(queries.histories, rows), gather(queries.seen, rows)
        banned = repeated(rows[:0], len(rows)) if repeats else seen
        parts.append(cascade.ranked(Users.visitors(histories), wanted, banned=banned))
    return Ranked(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _best(ranked: Ranked, scores: torch.Tensor) -> torch.Tensor:
    """Returns the candidates with the highest scores, rows int64 [Q, 20], best first; -1 where there are fewer."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return ranked.items.gather(1, order[:, : max(CUTS)])


def _list_auc(ranked: Ranked, scores: torch.Tensor, target: torch.Tensor) -> float:
    """Returns the AUC of the ranker's probabilities over the items of all lists of ten."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :CUT]
    items, logits = ranked.items.gather(1, order), ranked.logits.gather(1, order)
    usable = items >= 0
    return auc((items == target[:, None])[usable].numpy(), logits[usable].double().sigmoid().numpy())
