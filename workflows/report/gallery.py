"""Sample items with their picture, caption and semantic ID."""

from __future__ import annotations

from dataclasses import dataclass

from models.semantic_ids.suffixes import sid_string
from storage.media.limits import Limits
from workflows.report.pictures import Picture, picture
from workflows.report.source import Source

SIZE = 24
PREVIEW = Limits(max_side=160, frames=1, fetch_seconds=5)


@dataclass(frozen=True)
class Card:
    """One item."""

    item_id: str
    title: str
    caption: str
    sid: str
    picture: Picture


def sample(source: Source) -> list[Card]:
    """Returns the first items in hash order, a fixed sample, sorted by their semantic IDs.

    Items with similar IDs are neighbours. Returns an empty list if no stage has written items yet.
    """
    if not source.complete("ingest"):
        return []
    interpreted = source.complete("interpret")
    folder = ("items",) if interpreted else ("catalog", "items")
    chosen = source.sample(SIZE, *folder)
    items = source.rows(chosen, "catalog", "items", columns=["title", "media"])
    captions = source.rows(chosen, "items", columns=["caption"]) if interpreted else {}
    codes = source.rows(chosen, "sids", columns=["codes"]) if source.complete("quantize") else {}
    chosen = [item_id for item_id in chosen if item_id in items]  # a newer ingest may have removed some
    chosen.sort(key=lambda item_id: codes.get(item_id, {}).get("codes") or [])
    return [
        Card(
            item_id=item_id,
            title=items[item_id]["title"] or "",
            caption=captions.get(item_id, {}).get("caption") or "",
            sid=sid_string(codes.get(item_id, {}).get("codes") or []),
            picture=picture(items[item_id]["media"], source, PREVIEW),
        )
        for item_id in chosen
    ]
