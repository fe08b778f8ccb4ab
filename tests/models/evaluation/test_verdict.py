"""The verdict on an update: the first rule that holds decides, and says why."""

from __future__ import annotations

from typing import Any

import pytest

from models.evaluation.verdict import DRIFT, ERASURE, KEEP, PROMOTE, Limits, News, judge

USUAL = News(700, 100.0, 100.0, 0.25, 0.24, 0.0, erasure_due=False)
STAYS = {"refit": False, "reason": "the quantizer fits"}


def ranker(change: float, spread: float = 0.01, **more: Any) -> dict[str, Any]:
    bounds = [change - spread, change + spread]
    return {"metric": "AUC", "new": 0.7 + change, "previous": 0.7, "change": change, "interval": bounds, **more}


def scores(change: float = 0.02, over: float = 0.1, **more: Any) -> dict[str, dict[str, Any]]:
    generator = {
        "metric": "NDCG@10",
        "new": 0.11,
        "previous": 0.1,
        "change": over,
        "interval": [over - 0.05, over + 0.05],
    }
    return {
        "ranker": {**ranker(change, **more), "relative": False},
        "generator": {**generator, "relative": True},
    }


@pytest.mark.parametrize(
    ("news", "scored", "drift", "verdict", "word"),
    [
        (USUAL, scores(), STAYS, PROMOTE, "AUC of the ranker is 0.7200"),
        (USUAL, scores(), None, PROMOTE, "+10.0% (95% interval +5.0% to +15.0%)"),
        (USUAL, scores(change=-0.005), STAYS, PROMOTE, "AUC"),  # the interval holds 0
        (USUAL, scores(change=-0.02), STAYS, KEEP, "-0.0200"),
        (USUAL, scores(over=-0.1), STAYS, KEEP, "NDCG@10"),
        (USUAL, {}, STAYS, PROMOTE, "nothing is scored"),
        (USUAL, scores(), {"refit": True, "reason": "9% could be mended"}, DRIFT, "9% could be mended"),
        (USUAL, scores(), {"refit": None, "reason": "too few"}, PROMOTE, "AUC"),
        (USUAL._replace(erasure_due=True), scores(), STAYS, ERASURE, "30 days"),
        (USUAL._replace(per_day=50.0), scores(), STAYS, KEEP, "50 events a day came in, where 100 are usual"),
        (USUAL._replace(per_day=200.0), scores(), STAYS, KEEP, "200 events a day"),
        (USUAL._replace(per_day=80.0), scores(), STAYS, PROMOTE, "AUC"),
        (USUAL._replace(per_day=None, usual_per_day=None), scores(), STAYS, PROMOTE, "AUC"),
        (USUAL._replace(events=0, per_day=0.0), scores(), STAYS, KEEP, "no event is newer"),
        (USUAL._replace(rate=0.75), scores(), STAYS, KEEP, "75.0% of the new events are positive"),
        (USUAL._replace(rate=None, usual_rate=None), scores(), STAYS, PROMOTE, "AUC"),
        (USUAL._replace(missing=0.5), scores(), {"refit": True, "reason": "?"}, KEEP, "50.0% of the events"),
        (USUAL, scores(previous_then=0.85), STAYS, KEEP, "contradict the old ranker"),
        (USUAL, scores(previous_then=0.75), STAYS, PROMOTE, "AUC"),
    ],
)
def test_the_first_rule_that_holds_decides(
    news: News, scored: dict, drift: dict | None, verdict: str, word: str
) -> None:
    found = judge(news, scored, drift, Limits())
    assert found["verdict"] == verdict
    assert word in "; ".join(found["reasons"])


def test_an_interval_of_too_few_users_decides_nothing() -> None:
    nothing = ranker(-0.5, spread=float("nan"), relative=False)
    assert judge(USUAL, {"ranker": nothing}, None, Limits())["verdict"] == PROMOTE
