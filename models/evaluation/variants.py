"""What the arms of an ablation show: AUCs, gains over a base arm, and how much of a known gap each arm closes.

An arm is the same ranker with other features, trained with S seeds. Every figure is a mean over seeds. Every interval
comes from resampled users, seeds and, where true probabilities are known, items: the same resamples for all arms.
Five seeds carry an interval while users and items make most of its width; where seeds make most of it, it is too
narrow (in simulations 85% instead of 95% of such intervals held the value).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.evaluation.bootstrap import FEWEST, bootstrap_auc, interval, over_seeds
from models.evaluation.clicks import expected_auc

TRUTH = "truth"  # the arm, where there is one, that is fed what the others have to guess


Arms = dict[str, dict[str, Any]]


def by_clicks(
    user: np.ndarray,
    label: np.ndarray,
    scores: dict[str, np.ndarray],
    *,
    seed: int,
    draws: int = 200,
    base: str = "id",
    item: np.ndarray | None = None,
) -> Arms:
    """Compare arms on the clicks of M impressions, with a bootstrap by user, and by item where `item` is given.

    Args:
        user: integer or string codes [M], at least one.
        label: 1 or 0, [M].
        scores: by arm, float [S, M]; row s of every arm is of the same seed.
        seed: of the resamples.
        draws: number of resamples.
        item: codes [M], where the items are few and others than these are meant, too.
        base: the arm that gains are over.

    Returns:
        By arm: auc, auc_interval and seeds (the AUC of each); but for the base arm gain and gain_interval. Where there
        is an arm `truth` the others have share and share_interval, too, the gain over that of the truth: NaN where the
        truth's own gain is not above 0 in every resample.
    """
    units = (user,) if item is None else (user, item)
    return _compare(units, (label > 0).astype(np.float64), scores, seed=seed, draws=draws, base=base)


def by_probability(
    probability: np.ndarray,
    scores: dict[str, np.ndarray],
    *,
    seed: int,
    draws: int = 200,
    base: str = "id",
) -> Arms:
    """Compare arms on the true probabilities of U users × I items, with a bootstrap by user and item.

    Args:
        probability: of a click, float [U, I].
        scores: by arm, float [S, U, I].
        seed: and what follows it, and what is returned: as of `by_clicks`.
    """
    users, items = np.indices(probability.shape)
    flat = {name: score.reshape(len(score), -1) for name, score in scores.items()}
    units = (users.reshape(-1), items.reshape(-1))
    return _compare(units, probability.reshape(-1), flat, seed=seed, draws=draws, base=base)


def _compare(
    units: tuple[np.ndarray, ...],
    probability: np.ndarray,
    scores: dict[str, np.ndarray],
    *,
    seed: int,
    draws: int,
    base: str,
) -> Arms:
    aucs = {name: np.array([expected_auc(probability, row) for row in score]) for name, score in scores.items()}
    samples = bootstrap_auc(units, probability, scores, seed=seed, draws=draws)
    if min(len(np.unique(unit)) for unit in units) < FEWEST:
        samples = {name: np.full_like(sample, np.nan) for name, sample in samples.items()}
    drawn = over_seeds(samples, seed=seed)
    gain = {name: float(auc.mean() - aucs[base].mean()) for name, auc in aucs.items()}
    gains = {name: values - drawn[base] for name, values in drawn.items()}
    # A share of a gap that may be none would be a share of noise.
    shown = TRUTH in scores and bool((gains[TRUTH] > 0).all())

    arms: Arms = {}
    for name, auc in aucs.items():
        arms[name] = {"auc": float(auc.mean()), "auc_interval": interval(drawn[name]), "seeds": auc.tolist()}
        if name != base:
            arms[name] |= {"gain": gain[name], "gain_interval": interval(gains[name])}
        if TRUTH in scores and name not in (base, TRUTH):
            arms[name] |= {
                "share": gain[name] / gain[TRUTH] if shown else float("nan"),
                "share_interval": interval(gains[name] / gains[TRUTH]) if shown else [float("nan")] * 2,
            }
    return arms


def conclude(arms: Arms, subjects: dict[str, str], where: str) -> dict[str, Any]:
    """Arms with a sentence for each that has a gain.

    Args:
        arms: as `by_clicks` or `by_probability` return them.
        subjects: how a sentence calls an arm, in the plural: "Captions".
        where: what the AUCs are of: "on cold items".
    """
    sentences = [sentence(subjects[name], where, arm) for name, arm in arms.items() if "gain" in arm]
    return {"arms": arms, "sentences": sentences}


def sentence(subject: str, where: str, arm: dict[str, Any]) -> str:
    """What the interval of an arm's gain allows to say.

    >>> captions = {"gain": 0.031, "gain_interval": [0.024, 0.038], "share": 0.71, "share_interval": [0.6, 0.82]}
    >>> sentence("Captions", "on cold items", captions)
    'Captions raise AUC on cold items by 0.0310 (0.0240 to 0.0380), 71% (60% to 82%) of what the true attributes give.'
    """
    low, high = arm["gain_interval"]
    least, most = arm.get("share_interval", [float("nan")] * 2)
    if not np.isfinite([low, high]).all():
        return f"{subject}: there is too little to tell an effect on AUC {where}."
    part = ""
    if low <= 0 <= high:
        if np.isfinite(most):
            part = f", and at most {max(most, 0):.0%} of what the true attributes give"
        return (
            f"{subject} have no shown effect on AUC {where}: the interval of the gain, {_signed(low)} to "
            f"{_signed(high)}, allows neither a gain nor a loss beyond it{part}."
        )
    if high < 0:
        return f"{subject} lower AUC {where} by {-arm['gain']:.4f} ({-high:.4f} to {-low:.4f})."
    if np.isfinite([least, most]).all():
        part = f", {arm['share']:.0%} ({least:.0%} to {most:.0%}) of what the true attributes give"
    return f"{subject} raise AUC {where} by {arm['gain']:.4f} ({low:.4f} to {high:.4f}){part}."


def gate_curve(arms: Arms) -> list[dict[str, Any]]:
    """AUC by trigger rate, ascending, of arms that are named by their rate: "0.25"."""
    return [
        {"rate": rate, "auc": arm["auc"], "interval": arm["auc_interval"]}
        for rate, arm in sorted((float(name), arm) for name, arm in arms.items())
    ]


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # adding zero keeps a rounded zero from showing a sign
