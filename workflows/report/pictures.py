"""Small pictures of untrusted media, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from operators.media.medium import decode
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources, read_limited, resolve
from workflows.report.source import Source


@dataclass(frozen=True)
class Picture:
    """The first medium of an item that can be shown; if none can, `uri` is empty and `missing` is the reason."""

    uri: str
    missing: str
    video: bool


def picture(media: list[dict[str, str]] | None, source: Source, limits: Limits) -> Picture:
    """Returns the picture of an item with these media, within limits."""
    stages = (source.settings(name) for name in ("interpret", "adapt_captioner"))
    fetch: dict[str, Any] = next((settings["fetch"] for settings in stages if settings.get("fetch")), {})
    allowed = Sources(tuple(fetch.get("roots", ())), fetch.get("http", False), tuple(fetch.get("allow_private", ())))
    missing = "no media"
    for medium in media or []:
        try:
            shown, video = preview(medium, source.catalog, allowed, limits)
            return Picture(shown, "", video)
        except MediaError as error:
            missing = error.code.replace("_", " ")
        except Exception:  # noqa: BLE001 - a store may raise anything, and the page must be written without the preview
            missing = "unreadable"
    return Picture("", missing, video=False)


def preview(medium: dict[str, Any], catalog: str, sources: Sources, limits: Limits) -> tuple[str, bool]:
    """Returns a picture, or a frame from the middle of a video, as a data URI of a small JPEG, and which it is.

    Raises:
        MediaError: the medium may not be read or does not decode.
    """
    content = read_limited(resolve(medium["uri"] or "", catalog, sources), limits, sources)
    frames, video = decode(content, medium["kind"], limits)
    out = io.BytesIO()
    Image.fromarray(frames[0]).save(out, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}", video
