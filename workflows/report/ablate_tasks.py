"""The task ablation: recommending by the number of tasks that a language model learns, and by its semantic IDs."""

from __future__ import annotations

from typing import Any

from workflows.engine.text import DASH, count, decimal, estimate, interval, is_number, signed
from workflows.report import figures
from workflows.report.contents import Figure, Table, intervals
from workflows.report.recommendations import TASK_MEASURES

SIDS = {"own": "the run's", "original": "of text alone"}
METRICS = {"recall@10": "recall@10", "ndcg@10": "NDCG@10"}
HELD_OUT = ("exact@10", "token_f1")  # one of them for each task


def budget(metrics: dict[str, Any]) -> str:
    """Says what all variants share.

    Args:
        metrics: `metrics/ablate_tasks.json`, see `ablate_tasks.scores.judge`; here as below any of it may be missing.
    """
    steps, main, batch = (count(metrics.get(key)) for key in ("steps", "main_documents", "batch_size"))
    return (
        f"Every variant has at most {steps} steps, with {main} documents of the main task each, on average. Its other "
        f"tasks share the rest of {batch} evenly: they take nothing from the main one."
    )


def variants(metrics: dict[str, Any]) -> Table | None:
    """Returns every variant by what it recommends."""
    rows = [
        [
            f"{len(one['tasks'])} tasks" if len(one["tasks"]) > 1 else "1 task",
            SIDS[one["sids"]],
            one["tasks"][-1] if one["sids"] == "own" else DASH,
            *(cell for metric in METRICS for cell in estimate(one, metric)),
            *estimate(one.get("added") or {}, "ndcg@10", signed),
        ]
        for one in _variants(metrics)
    ]
    heads = [column for name in METRICS.values() for column in (name, "95% interval")]
    columns = ["variant", "semantic IDs", "task added last", *heads]
    return Table([*columns, "change in NDCG@10 by it", "95% interval"], rows) if rows else None


def compared(metrics: dict[str, Any]) -> Table | None:
    """Returns the changes between variants, by what differs."""
    rows = [
        [what, *(cell for metric in METRICS for cell in estimate(change, metric, signed))]
        for what, change in (metrics.get("compared") or {}).items()
    ]
    heads = [column for name in METRICS.values() for column in (f"change in {name}", "95% interval")]
    return Table(["what differs", *heads], rows) if rows else None


def curves(metrics: dict[str, Any]) -> list[Figure]:
    """Draws NDCG@10 by the number of tasks on the run's own semantic IDs, with its seeds; beside it other variants."""
    drawn = [
        one for one in _variants(metrics) if is_number(one.get("ndcg@10")) and interval(one.get("ndcg@10_interval"))
    ]
    own = [one for one in drawn if one["sids"] == "own"]
    if len(own) < 2:
        return []
    tasks, values = [len(one["tasks"]) for one in own], [one["ndcg@10"] for one in own]
    lows, highs = zip(*(one["ndcg@10_interval"] for one in own), strict=True)
    dots = [(at, value) for at, one in zip(tasks, own, strict=True) for value in one["seeds"]["ndcg@10"]]
    svg = figures.band(tasks, values, lows, highs, x_label="number of tasks", dots=dots)
    text = "; ".join(f"{at}: {decimal(value)}" for at, value in zip(tasks, values, strict=True))
    curve = Figure("NDCG@10 of the main task by the number of tasks: mean, 95% interval, and each seed", text, svg)
    alone = [one for one in drawn if one["sids"] != "own"]
    likewise = [one for one in own if len(one["tasks"]) in (len(alone[0]["tasks"]), max(tasks))] if alone else []
    by_name = {f"SIDs {SIDS[one['sids']]}, {len(one['tasks'])} tasks": one for one in (*alone, *likewise)}
    title = "NDCG@10 of the main task by semantic IDs and tasks, with 95% intervals"
    return [curve, *intervals(title, by_name, "ndcg@10", "NDCG@10")]


def held_out(metrics: dict[str, Any]) -> Table | None:
    """Returns the scores of every task by the variants that learned it, and the control of those that read captions."""
    named = _variants(metrics)
    rows = []
    for task in dict.fromkeys(task for one in named for task in one["tasks"]):
        scores = [(one.get("held_out") or {}).get(task) or {} for one in named]
        for name, cards in (
            (task, scores),
            (f"{task}, captions shuffled", [one.get("shuffled") or {} for one in scores]),
        ):
            measure = next((each for each in HELD_OUT if any(each in card for card in cards)), None)
            if measure is not None:
                rows.append([name, TASK_MEASURES[measure], *(decimal(card.get(measure), 3) for card in cards)])
    heads = [f"{len(one['tasks'])}{'' if one['sids'] == 'own' else ', text alone'}" for one in named]
    return Table(["task", "measure", *heads], rows) if rows else None


def _variants(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    return list((metrics.get("variants") or {}).values())
