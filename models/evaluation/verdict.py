"""Whether a model that was updated takes the place of the one before it: a rule over what was measured."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from models.common.settings import Settings
from models.evaluation.bootstrap import verdict as sign

PROMOTE, KEEP, DRIFT, ERASURE = "promote", "keep the old one", "refit: SIDs drift", "refit: erased users are due"


class Limits(Settings):
    """What is taken for broken data, and when what was erased has to be forgotten.

    Attributes:
        volume: times more or fewer events a day than usual.
        label_odds: times higher or lower odds of a positive than usual.
        missing: share of the events of the run before that are no longer in the log.
        auc_drop: by which the old ranker is worse on the newest events than it was on those of its own test.
        erasure_days: after which models must no longer have learned from erased users.
    """

    volume: float = Field(1.6, gt=1)
    label_odds: float = Field(2.0, gt=1)
    missing: float = Field(0.05, ge=0, le=1)
    auc_drop: float = Field(0.1, gt=0)
    erasure_days: int = Field(30, ge=1)


class News(NamedTuple):
    """What a log has beyond that of the run before.

    Attributes:
        events: that are new.
        per_day, usual_per_day: of these, and of those of the weeks before; None where times do not compare users.
        rate, usual_rate: shares of positives; None without labels.
        missing: share of the earlier log's events that are no longer there, though the log begins before them.
        erasure_due: whether models have learned for too long from users who are erased since.
    """

    events: int
    per_day: float | None
    usual_per_day: float | None
    rate: float | None
    usual_rate: float | None
    missing: float
    erasure_due: bool


def judge(
    news: News, scores: dict[str, dict[str, Any]], drift: dict[str, Any] | None, limits: Limits
) -> dict[str, Any]:
    """Returns the verdict and its reasons; the first that holds decides.

    1. `keep the old one`: the new data look broken, so that nothing learned from them, and no score on them, counts.
    2. `refit: SIDs drift`: the quantizer no longer fits what comes.
    3. `refit: erased users are due`.
    4. `keep the old one`: the new model is worse on the newest events, with 97.5 % confidence.
    5. `promote`.

    Args:
        news: what the log has beyond that of the run before.
        scores: of `ranker` and `generator`, where both runs have one: `metric`, its `new` and `previous` value,
            `change`, its `interval`, whether they are `relative`; `previous_then`, the old ranker's on its own test.
        drift: `refit` and `reason` of `models.semantic_ids.drift.drift`; None where no item is new.
        limits: see there.
    """
    broken = _broken(news, scores.get("ranker", {}), limits)
    told = [_told(name, score) for name, score in scores.items()]
    drifts = drift is not None and bool(drift["refit"])
    worse = [name for name, score in scores.items() if sign(score["interval"]) == -1]
    if broken:
        return {"verdict": KEEP, "reasons": broken}
    if drifts and drift is not None:
        return {"verdict": DRIFT, "reasons": [drift["reason"], *told]}
    if news.erasure_due:
        since = f"models have learned for more than {limits.erasure_days} days from users who are erased"
        return {"verdict": ERASURE, "reasons": [since, *told]}
    return {"verdict": KEEP if worse else PROMOTE, "reasons": told or ["nothing is scored"]}


def _broken(news: News, ranker: dict[str, Any], limits: Limits) -> list[str]:
    """Returns what is wrong with the new data."""
    found = []
    if not news.events:
        found.append("no event is newer than those of the run before")
    elif news.per_day is not None and news.usual_per_day:
        times = news.per_day / news.usual_per_day
        if not 1 / limits.volume <= times <= limits.volume:
            found.append(f"{news.per_day:,.0f} events a day came in, where {news.usual_per_day:,.0f} are usual")
    if news.rate is not None and news.usual_rate is not None and news.events:
        odds = _odds(news.rate) / _odds(news.usual_rate)
        if not 1 / limits.label_odds <= odds <= limits.label_odds:
            found.append(f"{news.rate:.1%} of the new events are positive, where {news.usual_rate:.1%} are usual")
    if news.missing > limits.missing:
        found.append(f"{news.missing:.1%} of the events of the run before are missing")
    then, now = ranker.get("previous_then"), ranker.get("previous")
    if then is not None and now is not None and then - now > limits.auc_drop:
        found.append(f"the newest events contradict the old ranker: its AUC is {now:.3f} on them, and was {then:.3f}")
    return found


def _odds(share: float) -> float:
    return max(share, 1e-6) / max(1 - share, 1e-6)


def _told(name: str, score: dict[str, Any]) -> str:
    change, low, high = (
        f"{value:+.1%}" if score["relative"] else f"{value:+.4f}" for value in (score["change"], *score["interval"])
    )
    return (
        f"{score['metric']} of the {name} is {score['new']:.4f} on the newest events, and {score['previous']:.4f} of "
        f"the old one: {change} (95% interval {low} to {high})"
    )
