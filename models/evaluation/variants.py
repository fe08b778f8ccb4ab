"""Variants of a model in an ablation: AUCs, gains over a base variant, and shares of the gain by the truth.

A variant is the same model fitted in another way from S seeds. Every figure is a mean over seeds. Every interval comes
from resampled users, seeds and, where true probabilities are known, items: the same resamples for all variants. Five
seeds suffice for an interval whose width comes mostly from users and items; where it comes mostly from seeds, the
interval is too narrow (in simulations 85% instead of 95% of such intervals held the value).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.evaluation.bootstrap import FEWEST, bootstrap_auc, interval, least_shown, over_seeds, size, verdict
from models.evaluation.clicks import expected_auc

TRUTH = "truth"  # name of the variant, if any, that reads what the others have to infer
NONE = float("nan")

Results = dict[str, dict[str, Any]]  # by variant


@dataclass(frozen=True)
class Variant:
    """One of the models that an ablation compares; a subclass says in what they differ.

    Attributes:
        name: in settings, files and metrics.
        label: in sentences, a plural.
    """

    name: str
    label: str


def compare(
    units: tuple[np.ndarray, ...],
    probability: np.ndarray,
    scores: dict[str, np.ndarray],
    *,
    seed: int,
    draws: int = 200,
    base: str = "id",
) -> Results:
    """Compares variants on M pairs of a user and an item, with a bootstrap by user, or by user and item.

    Args:
        units: integer or string codes [M], at least one, of every kind of unit that is resampled: (user,), or
            (user, item) for conclusions about more items than these few.
        probability: of a click, or the clicks themselves, 1 or 0: float [M].
        scores: by variant, float [S, M]; row s of every variant is of the same seed.
        seed: of the resamples.
        draws: number of resamples.
        base: the variant that gains are over.

    Returns:
        By variant: auc, auc_interval and seeds (the AUC of each); but for the base gain, gain_interval and least_shown
        (the gain that so wide an interval shows in four of five repeats). If there is a variant `truth`, the others
        also have share and share_interval, the gain divided by that of the truth: NaN where the truth's own gain is not
        above 0 in every resample.
    """
    samples = bootstrap_auc(units, probability, scores, seed=seed, draws=draws)
    if min(len(np.unique(unit)) for unit in units) < FEWEST:
        samples = {name: np.full_like(sample, np.nan) for name, sample in samples.items()}
    aucs = {
        name: over_seeds(np.array([expected_auc(probability, row) for row in score]), samples[name], seed=seed)
        for name, score in scores.items()
    }
    gains = {name: auc.minus(aucs[base]) for name, auc in aucs.items()}
    # A share of a gain that may be none would be a share of noise.
    whole = gains[TRUTH] if TRUTH in scores and (gains[TRUTH].drawn > 0).all() else None
    results: Results = {}
    for name, auc in aucs.items():
        results[name] = {"auc": auc.mean, "auc_interval": auc.interval, "seeds": auc.seeds.tolist()}
        gain = gains[name]
        if name != base:
            found = gain.interval
            results[name] |= {"gain": gain.mean, "gain_interval": found, "least_shown": least_shown(found)}
        if TRUTH in scores and name not in (base, TRUTH):
            results[name] |= {
                "share": gain.mean / whole.mean if whole else NONE,
                "share_interval": interval(gain.drawn / whole.drawn) if whole else [NONE, NONE],
            }
    return results


def conclude(results: Results, variants: Mapping[str, Variant], where: str) -> dict[str, Any]:
    """Returns `variants`, the results, and `sentences`, one for each variant that has a gain.

    Args:
        results: of `compare`.
        variants: by name.
        where: what the AUCs are of: "on cold items".
    """
    sentences = [sentence(variants[name].label, where, one) for name, one in results.items() if "gain" in one]
    return {"variants": results, "sentences": sentences}


def sentence(label: str, where: str, result: dict[str, Any]) -> str:
    """Says what the interval of a variant's gain allows to say.

    >>> captions = {"gain": 0.031, "gain_interval": [0.024, 0.038], "share": 0.71, "share_interval": [0.6, 0.82]}
    >>> sentence("Captions", "on cold items", captions)
    'Captions raise AUC on cold items by 0.0310 (0.0240 to 0.0380), 71% (60% to 82%) of what the true attributes give.'
    """
    low, high = result["gain_interval"]
    least, most = result.get("share_interval", [NONE, NONE])
    share = bool(np.isfinite([least, most]).all())
    match verdict((low, high)):
        case None:
            return f"{label}: there is too little to tell an effect on AUC {where}."
        case 0:
            part = f", and at most {max(most, 0):.0%} of what the true attributes give" if share else ""
            return (
                f"{label} have no shown effect on AUC {where}: the interval of the gain, {_signed(low)} to "
                f"{_signed(high)}, allows neither a gain nor a loss beyond it{part}. A gain of "
                f"{least_shown((low, high)):.4f} would have been shown in four of five repeats."
            )
        case -1:
            return f"{label} lower AUC {where} by {size(result['gain'], (low, high))}."
    part = f", {result['share']:.0%} ({least:.0%} to {most:.0%}) of what the true attributes give" if share else ""
    return f"{label} raise AUC {where} by {size(result['gain'], (low, high))}{part}."


def gate_curve(results: Results) -> list[dict[str, Any]]:
    """Returns AUC by trigger rate, ascending, of variants that are named by their rate: "0.25"."""
    return [
        {"rate": rate, "auc": one["auc"], "interval": one["auc_interval"]}
        for rate, one in sorted((float(name), one) for name, one in results.items())
    ]


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # adding zero keeps a rounded zero from showing a sign
