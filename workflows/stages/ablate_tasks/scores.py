"""What the arms of the task ablation show: recommending by the number of tasks and by semantic IDs, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.common.recommender import Queries
from models.evaluation.bootstrap import bootstrap_means, interval, over_seeds
from models.evaluation.lists import CUT
from storage import files
from workflows.stages.ablate_tasks.stage import Config
from workflows.stages.ablate_tasks.variants import ORIGINAL, OWN, Arm, scores_uri, text_tasks
from workflows.stages.evaluate.recommenders import WITH_INTERVAL


def judge(
    folder: str, config: Config, arms: Sequence[Arm], seeds: Sequence[int], test: Queries, *, seed: int
) -> dict[str, Any]:
    """What the scores of all arms show.

    Args:
        folder: of the scores, see `fit_arms`.
        arms: that were fitted, of `make_arms`.
        seeds: from which each was.
        test: the queries that they were asked.
        seed: of the resamples.

    Returns:
        `budget`, `steps` and `batch_size`, which the arms have alike; `queries` and `users`, numbers; `arms`, by name:
        `sids`, `tasks`, recall@10 and ndcg@10, means over seeds, `seeds`, the values of each, `step`, the ones that
        were kept, `seconds` of a fit, `held_out`, means over seeds of the scores of its tasks, and for arms that have
        one task more than another `added`, the change; `compared`, changes between arms by what differs; `sentences`.
        All intervals are of the same resampled users and seeds, NaN with too few users.
    """
    found = {arm: [files.read_json(scores_uri(folder, arm.name, each)) for each in seeds] for arm in arms}
    values = {
        (arm, key, number): metric(np.array(one["rank"]), CUT)
        for arm, all_seeds in found.items()
        for number, one in enumerate(all_seeds)
        for key, metric in WITH_INTERVAL.items()
    }
    samples = bootstrap_means(test.user, values, seed=seed, draws=config.bootstrap)
    numbers, keys = range(len(seeds)), [(arm, key) for arm in arms for key in WITH_INTERVAL]
    means = {(arm, key): np.array([values[arm, key, each].mean() for each in numbers]) for arm, key in keys}
    drawn = over_seeds(
        {(arm, key): np.stack([samples[arm, key, each] for each in numbers]) for arm, key in keys}, seed=seed
    )

    def change(arm: Arm, over: Arm) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key in WITH_INTERVAL:
            shown[key] = float(means[arm, key].mean() - means[over, key].mean())
            shown[f"{key}_interval"] = interval(drawn[arm, key] - drawn[over, key])
        return shown

    cards: dict[str, Any] = {}
    for arm in arms:
        cards[arm.name] = card = {
            "sids": arm.sids,
            "tasks": [task.name for task in config.sequential.trained_tasks[: arm.tasks]],
            **{key: float(means[arm, key].mean()) for key in WITH_INTERVAL},
            **{f"{key}_interval": interval(drawn[arm, key]) for key in WITH_INTERVAL},
            "seeds": {key: means[arm, key].tolist() for key in WITH_INTERVAL},
            "step": [one["step"] for one in found[arm]],
            "seconds": float(np.mean([one["seconds"] for one in found[arm]])),
            "held_out": _held_out([one["tasks"] for one in found[arm]]),
        }
        before = Arm(OWN, arm.tasks - 1)
        if arm.sids == OWN and before in arms:
            card["added"] = change(arm, before)
    fit, compared = config.sequential.fit, {what: change(*pair) for pair, what in _pairs(config, arms).items()}
    return {
        "budget": config.budget,
        "steps": fit.steps,
        "batch_size": fit.batch_size,
        "queries": len(test.user),
        "users": len(np.unique(test.user)),
        "arms": cards,
        "compared": compared,
        "sentences": sentences(cards, compared),
    }


def _pairs(config: Config, arms: Sequence[Arm]) -> dict[tuple[Arm, Arm], str]:
    """The comparisons that the ablation is for: two of the arms, and what differs."""
    text, every = text_tasks(config.sequential), len(config.sequential.tasks)
    original, own, whole = Arm(ORIGINAL, text), Arm(OWN, text), Arm(OWN, every)
    named = {
        (whole, Arm(OWN, 1)): f"{every} tasks in place of the main one alone",
        (whole, original): f"The run's semantic IDs and {every} tasks in place of those of text alone and {text} tasks",
        (own, original): f"The run's semantic IDs in place of those of text alone, with {text} tasks",
        (whole, own): f"{every} tasks, of which {every - text} read captions, in place of {text}",
    }
    return {pair: what for pair, what in named.items() if pair[0] != pair[1] and set(pair) <= set(arms)}


def sentences(arms: dict[str, Any], compared: dict[str, Any]) -> list[str]:
    """What the intervals allow to say of NDCG@10 of the main task.

    >>> sentences({}, {"More tasks": {"ndcg@10": 0.012, "ndcg@10_interval": [0.004, 0.02]}})
    ['More tasks: NDCG@10 of the main task rises by 0.0120 (0.0040 to 0.0200).']
    """
    said = [f"{what}: NDCG@10 of the main task {_verdict(change)[1]}." for what, change in compared.items()]
    added = {card["tasks"][-1]: _verdict(card["added"])[0] for card in arms.values() if "added" in card}
    if not added:
        return said
    moved = [
        f"{', '.join(names)} {verb} it"
        for verdict, verb in ((1, "raises"), (-1, "lowers"))
        if (names := [name for name, found in added.items() if found == verdict])
    ]
    shown = "; ".join(moved) or "none is shown to change it"
    more = " One of twenty such intervals misses by chance." if moved else ""
    return [*said, f"Of {len(added)} tasks added one by one to the main one: {shown}.{more}"]


def _verdict(change: dict[str, Any]) -> tuple[int, str]:
    """Whether NDCG@10 is shown to rise (1), to fall (-1) or neither (0), and the same in words."""
    low, high = change["ndcg@10_interval"]
    if not np.isfinite([low, high]).all():
        return 0, "is asked of too few users to be compared"
    if low <= 0 <= high:
        return 0, f"is not shown to change: the interval is {low:+.4f} to {high:+.4f}"
    if low > 0:
        return 1, f"rises by {change['ndcg@10']:.4f} ({low:.4f} to {high:.4f})"
    return -1, f"falls by {-change['ndcg@10']:.4f} ({-high:.4f} to {-low:.4f})"


def _held_out(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By task, means over the seeds that had examples of it."""
    found: dict[str, Any] = {}
    for task in by_seed[0]:
        scores = [one[task] for one in by_seed if one[task]["examples"]]
        if scores:
            found[task] = _means(scores)
            if all("shuffled" in one for one in scores):
                found[task]["shuffled"] = _means([one["shuffled"] for one in scores])
    return found


def _means(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    numbers = [name for name, value in scores[0].items() if isinstance(value, int | float)]
    return {name: float(np.mean([one[name] for one in scores])) for name in numbers}
