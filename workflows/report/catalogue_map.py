"""The catalogue as a map: near items have similar embeddings, and the colour is the first code of the semantic ID."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.semantic_ids.suffixes import sid_string
from storage import files
from storage.media.limits import Limits
from workflows.engine.text import count, percent
from workflows.report.pictures import picture
from workflows.report.source import Source

WIDTH = 1000  # units of the drawing
MARGIN = 30
PICTURES = 300
THUMBNAIL = Limits(max_side=48, frames=1, fetch_seconds=5)
PATIENCE = 60.0  # seconds after which no more pictures are fetched, so that a slow store does not delay the page
TITLE_LENGTH = 120
GOLDEN_ANGLE = 137.508  # degrees between the hues of successive codes, which are far apart for any number of codes


@dataclass(frozen=True)
class Item:
    """An item on the map; `picture` is a data URI, empty beyond the first `PICTURES` items."""

    item_id: str
    title: str
    sid: str
    naive: str
    picture: str


@dataclass(frozen=True)
class Group:
    """The items of one code: a hue in degrees, and (position in the map's items, x, y) per item."""

    hue: int
    points: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Plot:
    """One colouring of the map, with a description as text."""

    title: str
    text: str
    groups: list[Group]


@dataclass(frozen=True)
class Map:
    """Items in the order of their semantic IDs, and the same positions in one or two colourings."""

    items: list[Item]
    plots: list[Plot]
    width: int
    height: int
    radius: int


def read_map(source: Source) -> Map | None:
    """Reads the map that `quantize` writes (`models.semantic_ids.layout.map_table`); returns None without one."""
    if not source.complete("quantize") or not files.exists(source.run.uri("metrics", "map")):
        return None
    table = source.run.read_table("metrics", "map")
    ids = table["item_id"].to_pylist()
    if not ids:
        return None
    items = source.rows(ids, "catalog", "items", columns=["title", "media"])
    pictures = dict(_pictures(source, items, ids))
    codes = {item_id: row["codes"] or [] for item_id, row in source.rows(ids, "sids", columns=["codes"]).items()}
    table = table.take(sorted(range(len(ids)), key=lambda row: (codes.get(ids[row], []), ids[row])))
    naive = table["naive_code"].to_pylist()
    places = _places(np.column_stack([table["x"], table["y"]]))
    plots = [_plot("Level 1 of the semantic IDs", places, table["code"].to_pylist())]
    if None not in naive:
        plots.append(_plot("Level 1 of text-only IDs", places, naive))
    return Map(
        [
            Item(
                item_id=item_id,
                title=(items.get(item_id, {}).get("title") or item_id)[:TITLE_LENGTH],
                sid=sid_string(codes.get(item_id, [])),
                naive="" if code is None else sid_string([code]),
                picture=pictures.get(item_id, ""),
            )
            for item_id, code in zip(table["item_id"].to_pylist(), naive, strict=True)
        ],
        plots,
        width=WIDTH,
        height=int(places[:, 1].max()) + MARGIN,
        radius=int(np.clip(200 / np.sqrt(len(ids)), 5, 14)),
    )


def _pictures(source: Source, items: dict[str, dict[str, Any]], ids: list[str]) -> Iterator[tuple[str, str]]:
    end = time.monotonic() + PATIENCE
    for item_id in ids[:PICTURES]:
        if time.monotonic() > end:
            return
        if item_id in items:
            yield item_id, picture(items[item_id]["media"], source, THUMBNAIL).uri


def _places(positions: np.ndarray) -> np.ndarray:
    """Returns integer positions [N, 2] in units of the drawing: both axes on one scale, the longer one horizontal."""
    spans = np.ptp(positions, axis=0)
    moved = (positions - positions.min(0))[:, :: -1 if spans[1] > spans[0] else 1]
    return np.rint(moved * (WIDTH - 2 * MARGIN) / max(float(spans.max()), 1e-12) + MARGIN).astype(int)


def _plot(title: str, places: np.ndarray, codes: list[int]) -> Plot:
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for row, (code, (x, y)) in enumerate(zip(codes, places.tolist(), strict=True)):
        groups.setdefault(code, []).append((row, x, y))
    largest = max(map(len, groups.values())) / len(codes)
    text = f"{count(len(codes))} items of {count(len(groups))} codes; the largest code has {percent(largest)} of them"
    return Plot(title, text, [Group(round(code * GOLDEN_ANGLE) % 360, groups[code]) for code in sorted(groups)])
