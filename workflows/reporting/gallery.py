"""Sample items with their picture, caption and semantic ID."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from models.semantic_ids import sid_string
from operators.media import decode_image
from operators.video import decode_video
from storage import files
from storage.hashing import hash_order
from storage.limits import Limits, MediaError, Sources, read_limited, resolve
from workflows.reporting.source import Source

SIZE = 24
PREVIEW = Limits(max_side=160, frames=1, fetch_seconds=5)


@dataclass(frozen=True)
class Card:
    """One item; `picture` is a data URI, empty where no medium can be shown, and `missing` then says why."""

    item_id: str
    title: str
    caption: str
    sid: str
    picture: str
    missing: str
    video: bool


def sample(source: Source) -> list[Card]:
    """The first items in hash order, so always the same ones, set out in the order of their semantic IDs.

    Items with like IDs stand side by side. Empty where no stage has written items yet.
    """
    if not source.complete("ingest"):
        return []
    interpreted = source.complete("interpret")
    folder = ("items",) if interpreted else ("catalog", "items")
    ids = source.run.read_table(*folder, columns=["item_id"])["item_id"].to_pylist()
    chosen = [ids[row] for row in hash_order(ids)[:SIZE]]
    media = _rows(source, chosen, "catalog", "items", columns=["item_id", "title", "media"])
    captions = _rows(source, chosen, "items", columns=["item_id", "caption"]) if interpreted else {}
    codes = _rows(source, chosen, "sids", columns=["item_id", "codes"]) if source.complete("quantize") else {}
    chosen = [item_id for item_id in chosen if item_id in media]  # items of an older ingest may be gone
    chosen.sort(key=lambda item_id: codes.get(item_id, {}).get("codes") or [])
    return [
        _card(source.catalog, _allowed(source), media[item_id], captions.get(item_id, {}), codes.get(item_id, {}))
        for item_id in chosen
    ]


def _rows(source: Source, ids: list[str], *folder: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    wanted = pc.field("item_id").isin(pa.array(ids, pa.string()))
    table = files.dataset(source.run.uri(*folder)).to_table(columns=columns, filter=wanted)
    return {row["item_id"]: row for row in table.to_pylist()}


def _allowed(source: Source) -> Sources:
    """Where the run may fetch media from, beside the catalogue."""
    fetch = source.settings("interpret").get("fetch") or {}
    return Sources(tuple(fetch.get("roots", ())), fetch.get("http", False), tuple(fetch.get("allow_private", ())))


def _card(catalog: str, sources: Sources, item: dict[str, Any], caption: dict[str, Any], sid: dict[str, Any]) -> Card:
    picture, video, missing = "", False, "no media"
    for medium in item["media"] or []:
        try:
            picture, video = preview(medium, catalog, sources), medium["kind"] == "video"
            break
        except MediaError as error:
            missing = error.code.replace("_", " ")
        except Exception:  # noqa: BLE001 - a store may raise anything, and a preview is not worth the page
            missing = "unreadable"
    return Card(
        item_id=item["item_id"],
        title=item["title"] or "",
        caption=caption.get("caption") or "",
        sid=sid_string(sid.get("codes") or []),
        picture=picture,
        missing=missing,
        video=video,
    )


def preview(medium: dict[str, str], catalog: str, sources: Sources) -> str:
    """A picture, or a frame from the middle of a video, as a data URI of a small JPEG.

    Raises:
        MediaError: the medium may not be read or does not decode.
    """
    content = read_limited(resolve(medium["uri"] or "", catalog, sources), PREVIEW, sources)
    pixels = decode_video(content, PREVIEW)[0] if medium["kind"] == "video" else decode_image(content, PREVIEW)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
