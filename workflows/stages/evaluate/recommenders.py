"""Measures the lists of every recommender on the test split, by the same queries, and what each task has learned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommended, Recommender, masked_and_not, recommend_blocks
from models.evaluation.bootstrap import bootstrap_means, interval, ratio
from models.evaluation.lists import CUT, CUTS, FAIR, ndcg, ranks, recall, scorecard
from models.generation.heldout import task_scores
from models.recommenders.content import fit_content
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.next_item import NextItemModel
from models.recommenders.popularity import MostPopular
from operators.features.ranker_inputs import aligned, read_embeddings
from operators.log.partitions import item_ids, open_log, read_user_ids
from operators.log.sequences import read_queries, read_training
from serving.cascade import PIPELINE
from workflows.catalogs.synthetic.truth import true_lists
from workflows.engine.previous import has_finished
from workflows.engine.stage import Context
from workflows.stages.evaluate.pipeline import score_pipeline
from workflows.stages.evaluate.previous import earlier_recommender
from workflows.stages.generate.build import load_recommender, read_corpus
from workflows.stages.generate.earlier import earlier_of

EXAMPLES = 300  # per task
BASELINES = ("sasrec", "item_knn", "content", "popularity", "previous")  # the last one is that of the run before
GAIN = f"ndcg@{CUT}"
WITH_INTERVAL = {f"recall@{CUT}": recall, GAIN: ndcg}
TRADED = (GAIN, f"fair_{FAIR}@{CUT}", f"tail_{GAIN}", f"popularity_bias@{CUT}")  # what a penalty on popularity changes


def score_recommenders(
    context: Context,
    *,
    queries: int,
    of_pipeline: int,
    draws: int,
    penalties: Sequence[float] = (),
    previous: str | None = None,
) -> dict[str, Any]:
    """Returns metrics of the recommenders that the stage generate has fitted, of content, popularity and the truth.

    The truth is known of a generated catalogue only.

    Every positive event of the test split that generate asks for is a query over the whole catalogue. What is tuned
    here is tuned on validation.

    Lists are masked: what the user has met is left out, as on validation. They are judged once more as they are, with
    seen items left in, by the same queries. The truth is not: a recommender may leave seen items out by itself, so
    the masked truth is the most that can be reached either way. Where users choose the same items again
    (`filter_seen: false`), a mask would remove answers: there is one judgement, of the lists as they are.

    Args:
        context: of a run whose generate stage is complete.
        queries: of validation and of test, a sample, at most.
        of_pipeline: queries of either that the service's pipeline answers, at most; see `score_pipeline`.
        draws: resamples of users behind every interval.
        penalties: on popularity, with which next-item models are asked on validation.
        previous: URI of the run before; the generator that it has chosen is asked, too.

    Returns:
        See `judge`, of masked lists, with the weights of the ensemble's members and the `penalties` of next-item models
        (`penalty_curve`); of the service's `pipeline` what `score_pipeline` returns; under `as_is` of each recommender
        and ratio the same of lists as they are. Empty where the test split has no query.
    """
    run = context.run
    generated = run.read_json("metrics", "generate.json")
    log, ids = open_log(run), item_ids(run)
    valid, test = (
        read_queries(log, context.split, name, **generated["queries"], most=queries, seed=context.seed)
        for name in ("valid", "test")
    )
    if not len(test.user):
        context.log("no event of the test split asks for a next item: the recommenders have no scores")
        return {}

    repeats = generated["queries"]["repeats"]
    training = read_training(log, context.split)
    vectors = aligned(ids, read_embeddings(run))
    known = None if repeats else valid.seen
    recommenders: dict[str, Recommender] = {
        **{name: load_recommender(run, name) for name in generated["valid"]},
        "content": fit_content(vectors, valid.histories, valid.target, banned=known),
        "popularity": MostPopular(torch.from_numpy(training.positives)),
    }
    own = tuple(recommenders)
    if has_finished(previous, "generate") and (earlier := earlier_of(previous, ids)) is not None:
        recommenders["previous"] = earlier_recommender(earlier)

    lists: dict[str, Recommended] = {}
    as_is: dict[str, Recommended] = {}
    for name, recommender in recommenders.items():
        began = time.monotonic()
        if repeats:
            lists[name] = recommend_blocks(recommender, test.histories, k=max(CUTS))
        else:
            lists[name], as_is[name] = masked_and_not(recommender, test.histories, k=max(CUTS), banned=test.seen)
        context.log(f"{name}: the lists of {len(test.user)} queries in {time.monotonic() - began:.1f} s")

    weights = generated.get("ensemble", {})

    def judged(lists: dict[str, Recommended]) -> dict[str, Any]:
        rest: Any = {"chosen": generated["chosen"], "members": tuple(weights), "seed": context.seed, "draws": draws}
        return judge(lists, test, training.positives, ~training.warm, **rest)

    banned = None if repeats else test.seen
    truth = true_lists(context.catalog, ids, read_user_ids(run, test.user), test.time, k=max(CUTS), banned=banned)
    cards = judged(lists if truth is None else {**lists, "truth": truth})
    places = {name: ranks(found.items.numpy(), test.target.numpy()) for name, found in lists.items()}
    run.write_table(pa.table({"user": test.user, "item": test.target.numpy(), **places}), "metrics", "ranks")
    if weights:
        cards["ensemble"]["weights"] = weights
    if as_is:
        others = judged(as_is)
        cards = {name: {**card, "as_is": others[name]} if name in others else card for name, card in cards.items()}
    few = test.first(of_pipeline)
    cards[PIPELINE] = score_pipeline(
        context,
        valid.first(of_pipeline),
        few,
        {name: places[name][: len(few.user)] for name in own},
        {name: recommenders[name] for name in generated["valid"]},
        chosen=generated["chosen"],
        popular=lists["popularity"].items[: len(few.user)],
        training=training,
        repeats=repeats,
        draws=draws,
    )
    for name, model in recommenders.items():
        if penalties and isinstance(model, NextItemModel):
            curve = penalty_curve(model, penalties, valid, training.positives, ~training.warm, banned=known)
            cards[name]["penalties"] = curve
    return {**cards, "generator": cards[generated["chosen"]]}


def penalty_curve(
    model: NextItemModel,
    penalties: Sequence[float],
    valid: Queries,
    positives: np.ndarray,
    cold: np.ndarray,
    *,
    banned: Jagged | None,
) -> list[dict[str, float]]:
    """Returns what each penalty on popularity gives and takes on validation: `penalty`, and the metrics TRADED.

    Args:
        model: a fitted one.
        penalties: see `models.recommenders.next_item.NextItemModel.penalise`.
        valid: the queries; where there is none, nothing is told.
        positives, cold: see `judge`.
        banned: what their lists must not hold.
    """
    curve, own = [], model.penalty
    for penalty in penalties if len(valid.user) else ():
        model.penalise(penalty, torch.from_numpy(positives))
        lists = recommend_blocks(model, valid.histories, k=max(CUTS), banned=banned).items.numpy()
        card = scorecard(lists, valid.target.numpy(), positives, cold)
        curve.append({"penalty": penalty, **{key: card[key] for key in TRADED}})
    model.penalty = own
    return curve


def judge(
    lists: dict[str, Recommended],
    test: Queries,
    positives: np.ndarray,
    cold: np.ndarray,
    *,
    chosen: str,
    members: Sequence[str] = (),
    seed: int,
    draws: int = 200,
) -> dict[str, Any]:
    """Compares recommenders by their lists of 20 items.

    Args:
        lists: by recommender, of Q users.
        test: the queries.
        positives: events of every item in training, [N].
        cold: bool [N], the items without a training event of any kind.
        chosen: the recommender that counts as the generator.
        members: of the ensemble.
        seed: of the resamples.
        draws: number of resamples.

    Returns:
        For every recommender and for `generator` the scorecard of its lists, with recall@10_interval and
        ndcg@10_interval, and exact_lists where they come from a search: the share of lists that are proved to miss
        nothing of the catalogue. For every baseline `generator_over_…`, and for every member `ensemble_over_…`, the
        ratios of these two metrics with their intervals, NaN where the other one hits nothing. Where the truth is
        among the lists, `gap_closed`: the share of the gap between the NDCG@10 of popularity and of the truth that
        every recommender closes, and NAME_interval. All intervals are of the same resampled users.
    """
    target = test.target.numpy()
    place = {name: ranks(recommended.items.numpy(), target) for name, recommended in lists.items()}
    values = {(name, key): metric(place[name], CUT) for name in lists for key, metric in WITH_INTERVAL.items()}
    samples = bootstrap_means(test.user, values, seed=seed, draws=draws)
    cards: dict[str, Any] = {
        name: {
            **scorecard(recommended.items.numpy(), target, positives, cold),
            **{f"{key}_interval": interval(samples[name, key]) for key in WITH_INTERVAL},
            **({} if recommended.exact is None else {"exact_lists": float(recommended.exact.float().mean())}),
        }
        for name, recommended in lists.items()
    }
    over: dict[str, Any] = {}
    pairs = [("generator", chosen, name) for name in BASELINES] + [("ensemble", "ensemble", name) for name in members]
    for title, one, name in pairs:
        if name in cards:
            ratios = {key: ratio(samples[one, key], samples[name, key]) for key in WITH_INTERVAL}
            over[f"{title}_over_{name}"] = {
                **{key: float(ratio(cards[one][key], cards[name][key])) for key in WITH_INTERVAL},
                **{f"{key}_interval": interval(ratios[key]) for key in WITH_INTERVAL},
            }
    if "truth" in cards:
        means = {name: np.asarray(card[GAIN]) for name, card in cards.items()}
        over["gap_closed"] = {
            **{name: float(share) for name, share in _closed(means).items()},
            **{
                f"{name}_interval": interval(share)
                for name, share in _closed({name: samples[name, GAIN] for name in cards}).items()
            },
        }
    return {"generator": cards[chosen], **cards, **over}


def _closed(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the share of the gap between popularity and the truth that every other recommender closes."""
    low, high = scores["popularity"], scores["truth"]
    others = {name: values for name, values in scores.items() if name not in ("popularity", "truth")}
    return {name: ratio(values - low, high - low) for name, values in others.items()}


def score_tasks(context: Context, *, queries: int) -> dict[str, Any]:
    """Returns held-out scores by task, see `models.generation.heldout.task_scores`.

    Tasks about content are scored on items that were held out of them, recommending tasks on the test split. Empty
    where no language model that reads text was fitted.
    """
    run, name, seed = context.run, LanguageModelRecommender.kind, context.seed
    generated = run.read_json("metrics", "generate.json")
    if name not in generated["history"]:
        return {}
    recommender = load_recommender(run, name)
    if not isinstance(recommender, LanguageModelRecommender) or not recommender.settings.tasks:
        return {}
    settings, model = recommender.settings, recommender.model
    nothing = Jagged(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))  # trains nobody here
    corpus = read_corpus(settings, run, item_ids(run), nothing, seed=seed, vocabulary=model.vocabulary)
    test = read_queries(open_log(run), context.split, "test", **generated["queries"], most=queries, seed=seed)
    tasks = settings.trained_tasks
    return task_scores(model, recommender.trie, corpus, tasks, test, most=EXAMPLES, seed=seed)
