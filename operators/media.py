"""Fetch media and decode them to frames, within limits.

A frame travels as raw RGB bytes with its height and width: decoding is paid once, and the next operator sees the pixels
without a copy.
"""

from __future__ import annotations

import io
import time
import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import av
import numpy as np
import pyarrow as pa
from av.error import FFmpegError
from PIL import Image, ImageOps, UnidentifiedImageError

from operators.base import ISSUE, KEPT, REJECTED, Operator, set_columns
from storage.limits import Limits, MediaError, read_limited, resolve

FRAME = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.large_binary())])
TRIES = 4  # media that may fail, and cost their limits, for each one wanted
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def decode_image(content: bytes, limits: Limits) -> np.ndarray:
    """Decode a picture to RGB uint8 [H, W, 3], upright, its longer side at most `limits.max_side`.

    Of an animated picture the first frame is taken; transparency is laid over white.

    Raises:
        MediaError: `not_an_image`, `too_many_pixels` or `broken_image`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pixel limits are ours, see below
            picture: Image.Image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
            if picture.width * picture.height > limits.max_pixels:
                raise MediaError("too_many_pixels", f"{picture.width} x {picture.height}")
            picture.draft("RGB", (limits.max_side, limits.max_side))
            return _shrink(_to_rgb(ImageOps.exif_transpose(picture)), limits)
    except UnidentifiedImageError as error:
        raise MediaError("not_an_image", "no known picture format") from error
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … on damaged files
        raise MediaError("broken_image", f"{type(error).__name__}: {error}"[:200]) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        span = float(values.max() - values.min()) or 1.0
        return Image.fromarray(((values - values.min()) * (255.0 / span)).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def decode_video(content: bytes, limits: Limits) -> list[np.ndarray]:
    """Decode `limits.frames` frames, evenly over a video's length, each RGB uint8 [H, W, 3].

    Raises:
        MediaError: `not_a_video`, `too_many_pixels`, `too_long`, `too_slow` or `broken_video`.
    """
    deadline = time.monotonic() + limits.decode_seconds
    try:
        with av.open(io.BytesIO(content), mode="r", timeout=limits.decode_seconds) as container:
            if not container.streams.video:
                raise MediaError("not_a_video", "no video stream")
            stream = container.streams.video[0]
            _check_size(stream.codec_context, limits)
            seconds = float(container.duration or 0) / av.time_base
            if seconds > limits.max_seconds:
                raise MediaError("too_long", f"{seconds:.0f} s")
            moments = [seconds * (i + 0.5) / limits.frames for i in range(limits.frames)]
            frames = (_sample(container, stream, moment, deadline, limits) for moment in moments)
            found = [_shrink(frame.to_image(), limits) for frame in frames if frame is not None]
    except MediaError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and not isinstance(error, FFmpegError):
            raise  # FFmpeg's own MemoryError only says that a damaged file asks for too much
        raise MediaError("broken_video", f"{type(error).__name__}: {error}"[:200]) from error
    if not found:
        raise MediaError("broken_video", "no frame decodes")
    return found


def _sample(
    container: av.container.InputContainer, stream: av.VideoStream, second: float, deadline: float, limits: Limits
) -> av.VideoFrame | None:
    """The first frame at or after `second`, from the key frame before it; the last one seen where the file ends.

    A file may lie about its size and have millions of frames after one key frame: both are checked on the way.
    """
    container.seek(int(second * av.time_base))
    last = None
    for packet in container.demux(stream):
        for frame in packet.decode():
            _check_size(frame, limits)
            last = frame
            if frame.time is None or frame.time >= second:
                return last
        if time.monotonic() > deadline:
            raise MediaError("too_slow", f"decoding takes more than {limits.decode_seconds:g} s")
    return last


def _check_size(frame: av.VideoFrame | av.VideoCodecContext, limits: Limits) -> None:
    if frame.width * frame.height > limits.max_pixels:
        raise MediaError("too_many_pixels", f"{frame.width} x {frame.height}")


def _shrink(picture: Image.Image, limits: Limits) -> np.ndarray:
    picture.thumbnail((limits.max_side, limits.max_side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture)


@dataclass(frozen=True)
class FetchMedia(Operator):
    """Fetch the media of each item and decode the first `max_media` that can be used.

    A medium that fails leaves an issue of severity `degraded`, whatever the reason. The first `TRIES` times `max_media`
    media of an item are tried, no more. An item with neither a frame nor a text has nothing to interpret and is
    rejected.

    Attributes:
        root: URI of the catalogue; media outside of it are refused.
        max_media: media used per item.
        limits: what one medium may cost.
    """

    root: str
    max_media: int = 1
    limits: Limits = field(default_factory=Limits)

    version: ClassVar[int] = 2
    input_columns: ClassVar[tuple[str, ...]] = ("title", "description", "media", "outcome", "issues")

    @property
    def output_schema(self) -> pa.Schema:
        """Frames: list of {height, width, rgb}, empty where nothing decodes."""
        return pa.schema([("frames", pa.list_(FRAME))])

    def __call__(self, table: pa.Table) -> pa.Table:
        frames, issues, outcomes = [], [], []
        columns = (table[name].to_pylist() for name in ("title", "description", "media", "issues"))
        for title, description, media, known in zip(*columns, strict=True):
            found, problems = self._fetch(media or [])
            rejected = not found and not (title or "").strip() and not (description or "").strip()
            if rejected:
                detail = "no medium that decodes, no title and no description"
                problems.append({"severity": REJECTED, "code": "nothing_to_interpret", "detail": detail})
            frames.append([{"height": f.shape[0], "width": f.shape[1], "rgb": f.tobytes()} for f in found])
            issues.append([*known, *problems])
            outcomes.append(REJECTED if rejected else KEPT)
        return set_columns(
            table,
            {
                "frames": pa.array(frames, pa.list_(FRAME)),
                "issues": pa.array(issues, pa.list_(ISSUE)),
                "outcome": pa.array(outcomes, pa.string()),
            },
        )

    def _fetch(self, media: list[dict[str, str]]) -> tuple[list[np.ndarray], list[dict[str, str]]]:
        frames: list[np.ndarray] = []
        problems: list[dict[str, str]] = []
        used = 0
        for medium in media[: TRIES * self.max_media]:
            if used == self.max_media:
                break
            uri = medium["uri"] or ""
            try:
                content = read_limited(resolve(uri, self.root), self.limits)
                if medium["kind"] == "video":
                    frames += decode_video(content, self.limits)
                else:
                    frames.append(decode_image(content, self.limits))
                used += 1
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - a broken medium must not cost the item its title
                code = error.code if isinstance(error, MediaError) else "unreadable"
                problems.append({"severity": "degraded", "code": code, "detail": f"{uri}: {error}"[:500]})
        return frames, problems


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
