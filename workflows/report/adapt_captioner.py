"""The adapted captioner: its scores on held-out pictures, and examples, good or bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflows.engine.text import count, decimal, percent
from workflows.report.contents import Table
from workflows.report.gallery import PREVIEW
from workflows.report.pictures import Picture, picture
from workflows.report.source import Source


@dataclass(frozen=True)
class Example:
    """A held-out item: what its texts say, and what the captioner does."""

    item_id: str
    text: str
    caption: str
    picture: Picture


def scores(metrics: dict[str, Any]) -> Table:
    """Returns what held-out captions are worth."""
    held = metrics["held_out"]
    rows = [
        ["held-out pictures", count(held["pictures"]), ""],
        ["F1 of the words that pictures tell", decimal(held["words"], 3), decimal(held["shuffled"], 3)],
        ["a text finds its picture among ten", percent(held["recall_at_10"]), percent(10 / max(held["pictures"], 10))],
    ]
    return Table(["", "captions", "with another item's caption, or by chance"], rows)


def examples(source: Source) -> list[Example]:
    """Returns the examples with their pictures."""
    found = source.fit("adapt_captioner").get("examples") or []
    items = source.rows([one["item_id"] for one in found], "catalog", "items", columns=["media"])
    return [
        Example(**one, picture=picture(items[one["item_id"]]["media"], source, PREVIEW))
        for one in found
        if one["item_id"] in items
    ]
