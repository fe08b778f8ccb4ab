"""What an update has come to: the verdict with its reasons, and what is new since the run before."""

from __future__ import annotations

from typing import Any

from workflows.engine.text import count, decimal, percent
from workflows.report.contents import Table
from workflows.report.source import Source


def judged(source: Source) -> dict[str, Any]:
    """Returns what `judge_update` has told; empty where the run goes on from none."""
    found: dict[str, Any] = source.metrics("evaluate").get("update") or {}
    return found


def news(update: dict[str, Any]) -> Table:
    """Returns what came in beside what is usual."""
    log = update["log"]
    rows = [
        ["events a day", decimal(log["per_day"], 1), decimal(log["usual_per_day"], 1)],
        ["share of positives", percent(log["rate"]), percent(log["usual_rate"])],
    ]
    return Table(["", "new", "usual"], rows)


def items(update: dict[str, Any]) -> list[str]:
    """Returns a sentence about items that came or left, and one about attributes that have new values."""
    changes = update["items"]
    told = [f"{count(changes['new'])} items are new, {count(changes['gone'])} are gone."]
    values = [f"{key}: {', '.join(names)}" for key, names in changes["new_values"].items()]
    return [*told, f"New values of attributes: {'; '.join(values)}."] if values else told
