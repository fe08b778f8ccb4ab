"""Fetch media and decode them to frames, within limits.

A frame travels as raw RGB bytes with its height and width: decoding is paid once, and the next operator sees the pixels
without a copy.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import ISSUE, KEPT, REJECTED, Operator, set_columns
from operators.media.images import DECODING
from operators.media.medium import decode
from storage.errors import UserError
from storage.identity import speed
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources, read_limited, resolve, shown

FRAME = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.large_binary())])
TRIES = 4  # media that may fail, and cost their limits, for each one wanted
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage and size, which end in rejects/


class Fetched(NamedTuple):
    """What came of one item's media."""

    frames: list[np.ndarray]
    digest: bytes | None
    problems: list[dict[str, str]]


@dataclass(frozen=True)
class FetchMedia(Operator):
    """Fetch the media of each item and decode the first `max_media` that can be used.

    Their bytes tell pictures from videos, whatever name and kind say. A medium that fails, or of which only a part
    decodes, leaves an issue of severity `degraded`, whatever the reason. The first `TRIES` times `max_media`
    media of an item are tried, no more. An item with neither a frame nor a text has nothing to interpret and is
    rejected.

    Attributes:
        root: URI of the catalogue.
        max_media: media used per item.
        limits: what one medium may cost.
        sources: where media may lie beside the catalogue; elsewhere they are refused.
        concurrency: items whose media are fetched at a time where they may lie on other machines.
        given: columns that an item may come with, any of which makes it worth keeping.
    """

    root: str
    max_media: int = 1
    limits: Limits = field(default_factory=Limits)
    sources: Sources = field(default_factory=Sources)
    concurrency: int = speed(8)
    given: tuple[str, ...] = speed(())

    version: ClassVar[int] = 5

    @property
    def input_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """What an item has to be interpreted, and what rows travel with."""
        return ("title", "description", "media", *self.given, "outcome", "issues")

    @property
    def output_schema(self) -> pa.Schema:
        """Frames: list of {height, width, rgb}, empty where nothing decodes.

        Media digest: BLAKE2b, 16 bytes, of the content that the frames came from and of the settings that decide their
        pixels; whatever name it had. NULL without a frame.
        """
        return pa.schema([("frames", pa.list_(FRAME)), ("media_digest", pa.binary(16))])

    def __call__(self, table: pa.Table) -> pa.Table:
        remote = self.sources.http or any("://" in root for root in (self.root, *self.sources.roots))
        with ThreadPoolExecutor(self.concurrency if remote else 1) as threads:
            run = threads.map if remote else map
            fetched = list(run(self._fetch, table["media"].to_pylist()))
        there = [_has_text(table["title"]), _has_text(table["description"])]
        nothing = pc.invert(reduce(pc.or_, [*there, *(table[name].is_valid() for name in self.given)])).to_pylist()
        issues, outcomes = [], []
        for item, without_text, known in zip(fetched, nothing, table["issues"].to_pylist(), strict=True):
            rejected = without_text and not item.frames
            if rejected:
                detail = "no medium that decodes, no title and no description"
                item.problems.append({"severity": REJECTED, "code": "nothing_to_interpret", "detail": detail})
            issues.append([*known, *item.problems])
            outcomes.append(REJECTED if rejected else KEPT)
        return set_columns(
            table,
            {
                "frames": frame_column([item.frames for item in fetched]),
                "media_digest": pa.array([item.digest for item in fetched], pa.binary(16)),
                "issues": pa.array(issues, pa.list_(ISSUE)),
                "outcome": pa.array(outcomes, pa.string()),
            },
        )

    def _fetch(self, media: list[dict[str, str]] | None) -> Fetched:
        frames: list[np.ndarray] = []
        problems: list[dict[str, str]] = []
        limits = self.limits
        settings = (self.version, self.max_media, limits.max_side, limits.frames, limits.sampling)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        used = 0
        for medium in (media or [])[: TRIES * self.max_media]:
            if used == self.max_media:
                break
            uri = medium["uri"] or ""
            partly: list[str] = []
            try:
                content = read_limited(resolve(uri, self.root, self.sources), limits, self.sources)
                with DECODING:
                    decoded = decode(content, medium["kind"], limits, partly.append)
            except (MemoryError, UserError):
                raise
            except Exception as error:  # noqa: BLE001 - a broken medium must not cost the item its title
                problems.append(_degraded(error.code if isinstance(error, MediaError) else "unreadable", uri, error))
            else:
                used += 1
                frames += decoded.frames
                problems += [_degraded("damaged_video", uri, detail) for detail in partly]
                digest.update(f"{decoded.video} {len(content)} ".encode())
                digest.update(content)
        return Fetched(frames, digest.digest() if frames else None, problems)


def _degraded(code: str, uri: str, detail: object) -> dict[str, str]:
    return {"severity": "degraded", "code": code, "detail": f"{shown(uri)}: {detail}"[:500]}


def _has_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether there is more than white space; bool."""
    return pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0), False)


def frame_column(rows: Sequence[Sequence[np.ndarray]]) -> pa.ListArray:
    """Pictures (uint8 [H, W, 3]) of each row as a `frames` column, the inverse of `frame_arrays`."""
    pictures = [picture for row in rows for picture in row]
    shapes = np.array([picture.shape for picture in pictures], np.int32).reshape(-1, 3)
    ends = np.cumsum([0, *(picture.size for picture in pictures)], dtype=np.int64)
    pixels = np.concatenate([picture.reshape(-1) for picture in pictures]) if pictures else np.zeros(0, np.uint8)
    rgb = pa.Array.from_buffers(pa.large_binary(), len(pictures), [None, pa.py_buffer(ends), pa.py_buffer(pixels)])
    flat = pa.StructArray.from_arrays([pa.array(shapes[:, 0]), pa.array(shapes[:, 1]), rgb], fields=list(FRAME))
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=pa.list_(FRAME))


def frame_arrays(frames: pa.ChunkedArray) -> tuple[list[np.ndarray], np.ndarray]:
    """View a `frames` column as pictures.

    Returns:
        All frames in row order, each uint8 [H, W, 3] over Arrow's own memory, and the number of frames per row
        (int64 [N]); null rows have none.
    """
    column = frames.combine_chunks() if isinstance(frames, pa.ChunkedArray) else frames
    counts = np.asarray(column.value_lengths().fill_null(0), dtype=np.int64)
    flat = column.flatten()
    heights, widths = (np.asarray(flat.field(name)) for name in ("height", "width"))
    pictures = [
        np.frombuffer(scalar.as_buffer(), dtype=np.uint8).reshape(height, width, 3)
        for scalar, height, width in zip(flat.field("rgb"), heights, widths, strict=True)
    ]
    return pictures, counts
