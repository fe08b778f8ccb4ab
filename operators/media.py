"""Fetch media and decode them to frames, within limits.

A frame travels as raw RGB bytes with its height and width: decoding is paid once, and the next operator sees the pixels
without a copy.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from operators.base import ISSUE, KEPT, REJECTED, Operator, set_columns
from operators.video import decode_video
from storage.errors import UserError
from storage.identity import speed
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources, read_limited, resolve, shown

FRAME = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.large_binary())])
TRIES = 4  # media that may fail, and cost their limits, for each one wanted
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
COSTLY = {"WEBP": 4}  # libwebp keeps several canvases: so many times the memory, and so many times fewer pixels
MAX_PASSES = 20  # that a progressive JPEG may make over `max_pixels` pixels, or more over fewer; encoders make ten
STRIP_PIXELS = 1 << 20
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DECODING = threading.Lock()  # what waits for the network must not take the memory of several pictures as well
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage and size, which end in rejects/


class _Reader(io.BytesIO):
    """A file in memory that can be read until a deadline: headers of millions of chunks are walked in Python."""

    def __init__(self, content: bytes, seconds: float) -> None:
        super().__init__(content)
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._deadline:
            raise MediaError("too_slow", f"reading the headers takes more than {self._seconds:g} s")
        return super().read(size)


def decode_image(content: bytes, limits: Limits) -> np.ndarray:
    """Decode a picture to RGB uint8 [H, W, 3], upright, its longer side at most `limits.max_side`.

    Of an animated picture the first frame is taken; transparency is laid over white; 16-bit and float pictures are
    stretched to their range. Only the decoder holds the picture at full size.

    Raises:
        MediaError: `not_an_image`, `too_many_pixels`, `too_slow` or `broken_image`.
    """
    try:
        picture: Image.Image = Image.open(_Reader(content, limits.decode_seconds), formats=IMAGE_FORMATS)
        _check_cost(picture, content, limits)
        size = limits.fit(*picture.size)
        picture.draft("RGB", size)
        small = _shrunk(picture, size)
        turn = UPRIGHT.get(_orientation(picture))
        return np.asarray(small.transpose(turn) if turn is not None else small)
    except UnidentifiedImageError as error:
        raise MediaError("not_an_image", "no known picture format") from error
    except Image.DecompressionBombError as error:
        raise MediaError("too_many_pixels", str(error)) from error
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … on damaged files
        raise MediaError("broken_image", f"{type(error).__name__}: {error}"[:200]) from error


def _check_cost(picture: Image.Image, content: bytes, limits: Limits) -> None:
    pixels = picture.width * picture.height
    if picture.format == "TIFF":  # a small picture may be cut from an enormous tile
        pixels = max(pixels, int(picture.tag_v2.get(322, 0)) * int(picture.tag_v2.get(323, 0)))  # type: ignore[attr-defined]
    if pixels * COSTLY.get(picture.format or "", 1) > limits.max_pixels:
        raise MediaError("too_many_pixels", f"{picture.width} x {picture.height}")
    scans = content.count(b"\xff\xda") if picture.format == "JPEG" else 1
    if scans * max(pixels, 1 << 16) > MAX_PASSES * limits.max_pixels:
        raise MediaError("too_slow", f"{scans} scans of {picture.width} x {picture.height}")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except (MediaError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a picture with a broken note is still a picture
        return 1


def _shrunk(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB at `size`: by whole factors first, down to twice the size, strip by strip, then bilinear."""
    width, height = picture.size
    factors = across, down = max(1, width // (2 * size[0])), max(1, height // (2 * size[1]))
    levels = _levels(picture)
    if factors == (1, 1):
        whole = _to_rgb(picture, levels)
        return whole if whole.size == size else whole.resize(size, Image.Resampling.BILINEAR)
    small = Image.new("RGB", (-(-width // across), -(-height // down)))
    for top, strip in _strips(picture, down):
        small.paste(_to_rgb(strip, levels).reduce(factors), (0, top // down))
    return small.resize(size, Image.Resampling.BILINEAR, box=(0, 0, width / across, height / down))


def _strips(picture: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Top edge and pixels of strips of the full width, their heights a multiple of `multiple`."""
    rows = multiple * max(1, STRIP_PIXELS // (picture.width * multiple))
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode.startswith("I;16") or picture.mode in ("I", "F")


def _levels(picture: Image.Image) -> tuple[float, float]:
    """The lowest and the highest finite value of a picture of more than 8 bits; (0, 255) for others."""
    if not _is_deep(picture):
        return 0.0, 255.0
    low, high = np.inf, -np.inf
    for _, strip in _strips(picture):
        values = np.asarray(strip, dtype=np.float64)
        values = values[np.isfinite(values)]
        low, high = min(low, values.min(initial=low)), max(high, values.max(initial=high))
    return (0.0, 1.0) if low > high else (low, high if low < high else low + 1.0)


def _to_rgb(picture: Image.Image, levels: tuple[float, float]) -> Image.Image:
    if _is_deep(picture):
        low, high = levels
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=low, posinf=high, neginf=low)
        return Image.fromarray(((values - low) * (255.0 / (high - low))).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


class Fetched(NamedTuple):
    """What came of one item's media."""

    frames: list[np.ndarray]
    digest: bytes | None
    problems: list[dict[str, str]]


@dataclass(frozen=True)
class FetchMedia(Operator):
    """Fetch the media of each item and decode the first `max_media` that can be used.

    A medium that fails leaves an issue of severity `degraded`, whatever the reason. The first `TRIES` times `max_media`
    media of an item are tried, no more. An item with neither a frame nor a text has nothing to interpret and is
    rejected.

    Attributes:
        root: URI of the catalogue.
        max_media: media used per item.
        limits: what one medium may cost.
        sources: where media may lie beside the catalogue; elsewhere they are refused.
        concurrency: items whose media are fetched at a time where they may lie on other machines.
    """

    root: str
    max_media: int = 1
    limits: Limits = field(default_factory=Limits)
    sources: Sources = field(default_factory=Sources)
    concurrency: int = speed(8)

    version: ClassVar[int] = 3
    input_columns: ClassVar[tuple[str, ...]] = ("title", "description", "media", "outcome", "issues")

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
        nothing = pc.invert(pc.or_(_has_text(table["title"]), _has_text(table["description"]))).to_pylist()
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
            try:
                content = read_limited(resolve(uri, self.root, self.sources), limits, self.sources)
                with DECODING:
                    video = medium["kind"] == "video"
                    frames += decode_video(content, limits) if video else [decode_image(content, limits)]
            except (MemoryError, UserError):
                raise
            except Exception as error:  # noqa: BLE001 - a broken medium must not cost the item its title
                code = error.code if isinstance(error, MediaError) else "unreadable"
                problems.append({"severity": "degraded", "code": code, "detail": f"{shown(uri)}: {error}"[:500]})
            else:
                used += 1
                digest.update(f"{video} {len(content)} ".encode())
                digest.update(content)
        return Fetched(frames, digest.digest() if frames else None, problems)


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
