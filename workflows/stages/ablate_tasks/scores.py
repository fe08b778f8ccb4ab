"""The scores of the variants: fits one, has it recommend, and judges all by their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models.common.recommender import Queries, recommended
from models.evaluation.bootstrap import Estimate, bootstrap_means, over_seeds, size, verdict
from models.evaluation.lists import CUT, ranks
from models.generation.heldout import task_scores
from models.recommenders import fitting
from models.recommenders.language_model import LanguageModelRecommender
from storage.run import RunDir
from workflows.engine.stage import Context
from workflows.stages.ablate_tasks.settings import Config
from workflows.stages.ablate_tasks.variants import (
    ORIGINAL,
    OWN,
    main_documents,
    make_variants,
    text_tasks,
    variant_of,
    variant_settings,
)
from workflows.stages.evaluate.recommenders import WITH_INTERVAL
from workflows.stages.generate.build import training_task
from workflows.stages.generate.data import Data, write_data


def prepare(config: Config, context: Context) -> Data:
    """Writes the sequences that all variants learn from, and draws the queries that they answer."""
    settings = config.language_model
    data, _ = write_data(
        context,
        "ablate_tasks",
        history=settings.history,
        repeats=not config.filter_seen,
        most={"valid": settings.fit.valid_queries, "test": config.queries},
    )
    return data


def score(config: Config, runs: Mapping[str, RunDir], data: Data, name: str, seed: int) -> dict[str, Any]:
    """Fits one variant from one seed and returns the scores of its best state.

    Args:
        config: of the stage.
        runs: semantic IDs and texts, for OWN and ORIGINAL.
        data: of `prepare`.
        name: of the variant.
        seed: of the fit.

    Returns:
        The validation that was kept; `rank`, the place of each test query's item in its list, 0 where it is not among
        the first ten; `tasks`, see `models.generation.heldout.task_scores`.
    """
    variant = make_variants(config.language_model)[name]
    settings = variant_settings(config.language_model, variant)
    task = training_task(settings, runs[variant.sids], data, seed=seed)
    task = task._replace(losses=lambda learner: {})  # held-out examples are scored once, at the end
    curve: list[dict[str, Any]] = []
    best: dict[str, torch.Tensor] = {}

    def improved(learner: Any, tensors: fitting.State) -> None:
        best.update({name: tensor.clone() for name, tensor in tensors.items()})

    callbacks = fitting.Callbacks(lambda metrics, state: curve.append(metrics), improved)
    fitting.fit(settings.fit, task, data.valid, callbacks, seed=seed, filter_seen=config.filter_seen)
    task.learner.load_state_dict(best)
    recommender = task.recommender(task.learner.eval())
    assert isinstance(recommender, LanguageModelRecommender)  # noqa: S101 - for the type checker
    test = data.test
    assert test is not None  # noqa: S101 - the stage has asked for it
    model, trie, tasks = recommender.model, recommender.trie, settings.trained_tasks
    lists = recommended(recommender, test.histories, k=CUT, banned=test.seen if config.filter_seen else None)
    return {
        **fitting.best_of(curve),
        "seconds": curve[-1]["seconds"],
        "rank": ranks(lists, test.target.numpy()).tolist(),
        "tasks": task_scores(model, trie, recommender.corpus, tasks, test, most=config.examples, seed=seed),
    }


def judge(fitted: dict[str, list[dict[str, Any]]], config: Config, test: Queries, *, seed: int) -> dict[str, Any]:
    """Compares the scores of the variants.

    Args:
        fitted: by variant, of `make_variants`, the scores from each seed, see `score`.
        config: of the stage.
        test: the queries that they answered.
        seed: of the resamples.

    Returns:
        `steps`, `batch_size` and, of that, `main_documents`, those of the main task, which all variants share;
        `queries` and `users`, numbers; `variants`, by name: `sids`, `tasks`, recall@10 and ndcg@10, means over seeds,
        `seeds`, the values of each, `step`, of the states that were kept, `seconds` of a fit, `held_out`, means over
        seeds of the scores of its tasks, and for variants that have one task more than another `added`, the change;
        `compared`, changes between variants by what differs; `sentences`. All intervals are of the same resampled users
        and seeds, NaN with too few users.
    """
    estimates = {
        name: {key: _estimate(metric, by_seed, test, config, seed) for key, metric in WITH_INTERVAL.items()}
        for name, by_seed in fitted.items()
    }

    def change(name: str, over: str) -> dict[str, Any]:
        return _figures({key: each.minus(estimates[over][key]) for key, each in estimates[name].items()})

    variants = {name: variant for name, variant in make_variants(config.language_model).items() if name in fitted}
    cards: dict[str, Any] = {}
    for name, variant in variants.items():
        by_seed = fitted[name]
        cards[name] = card = {
            "sids": variant.sids,
            "tasks": [task.name for task in config.language_model.trained_tasks[: variant.tasks]],
            **_figures(estimates[name]),
            "seeds": {key: each.seeds.tolist() for key, each in estimates[name].items()},
            "step": [one["step"] for one in by_seed],
            "seconds": float(np.mean([one["seconds"] for one in by_seed])),
            "held_out": _held_out([one["tasks"] for one in by_seed]),
        }
        before = variant_of(OWN, variant.tasks - 1).name
        if variant.sids == OWN and before in variants:
            card["added"] = change(name, before)
    compared = {what: change(*pair) for pair, what in _pairs(config).items() if set(pair) <= set(variants)}
    return {
        "steps": config.language_model.fit.last_step,
        "batch_size": config.language_model.fit.batch_size,
        "main_documents": main_documents(config.language_model),
        "queries": len(test.user),
        "users": len(np.unique(test.user)),
        "variants": cards,
        "compared": compared,
        "sentences": sentences(cards, compared),
    }


def _estimate(
    metric: Callable[[np.ndarray, int], np.ndarray], by_seed: Sequence[Any], test: Queries, config: Config, seed: int
) -> Estimate:
    values = {number: metric(np.array(one["rank"]), CUT) for number, one in enumerate(by_seed)}
    samples = bootstrap_means(test.user, values, seed=seed, draws=config.bootstrap)
    means = np.array([each.mean() for each in values.values()])
    return over_seeds(means, np.stack(list(samples.values())), seed=seed)


def _figures(estimates: dict[str, Estimate]) -> dict[str, Any]:
    means = {key: each.mean for key, each in estimates.items()}
    return means | {f"{key}_interval": each.interval for key, each in estimates.items()}


def _pairs(config: Config) -> dict[tuple[str, str], str]:
    """Returns what the ablation compares: the names of two variants, and what differs."""
    text, every = text_tasks(config.language_model), len(config.language_model.tasks)
    original, own, whole = (variant_of(*each).name for each in ((ORIGINAL, text), (OWN, text), (OWN, every)))
    pairs = {
        (whole, variant_of(OWN, 1).name): f"{every} tasks in place of the main one alone",
        (whole, original): f"The run's semantic IDs and {every} tasks in place of those of text alone and {text} tasks",
        (own, original): f"The run's semantic IDs in place of those of text alone, with {text} tasks",
        (whole, own): f"{every} tasks, of which {every - text} read captions, in place of {text}",
    }
    return {pair: what for pair, what in pairs.items() if pair[0] != pair[1]}


def sentences(variants: dict[str, Any], compared: dict[str, Any]) -> list[str]:
    """Says what the intervals allow to say of NDCG@10 of the main task.

    >>> sentences({}, {"More tasks": {"ndcg@10": 0.012, "ndcg@10_interval": [0.004, 0.02]}})
    ['More tasks: NDCG@10 of the main task rises by 0.0120 (0.0040 to 0.0200).']
    """
    lines = [f"{what}: NDCG@10 of the main task {_shown(change)}." for what, change in compared.items()]
    added = {
        card["tasks"][-1]: verdict(card["added"]["ndcg@10_interval"]) for card in variants.values() if "added" in card
    }
    if not added:
        return lines
    moved = [
        f"{', '.join(names)} {verb} it"
        for direction, verb in ((1, "raises"), (-1, "lowers"))
        if (names := [name for name, sign in added.items() if sign == direction])
    ]
    shown = "; ".join(moved) or "none is shown to change it"
    more = " One of twenty such intervals misses by chance." if moved else ""
    return [*lines, f"Of {len(added)} tasks added one by one to the main one: {shown}.{more}"]


def _shown(change: dict[str, Any]) -> str:
    bounds = change["ndcg@10_interval"]
    match verdict(bounds):
        case None:
            return "has too few users to be compared"
        case 0:
            return f"is not shown to change: the interval is {bounds[0]:+.4f} to {bounds[1]:+.4f}"
        case 1:
            return f"rises by {size(change['ndcg@10'], bounds)}"
    return f"falls by {size(change['ndcg@10'], bounds)}"


def _held_out(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns by task the means over the seeds that had examples of it."""
    means: dict[str, Any] = {}
    for task in by_seed[0]:
        scores = [one[task] for one in by_seed if one[task]["examples"]]
        if scores:
            means[task] = _means(scores)
            if all("shuffled" in one for one in scores):
                means[task]["shuffled"] = _means([one["shuffled"] for one in scores])
    return means


def _means(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    numbers = [name for name, value in scores[0].items() if isinstance(value, int | float)]
    return {name: float(np.mean([one[name] for one in scores])) for name in numbers}
