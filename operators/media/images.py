"""Decode pictures to RGB arrays, within limits."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from storage.media.limits import Limits, MediaError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
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
    """Decodes a picture to RGB uint8 [H, W, 3], upright, its longer side at most `limits.max_side`.

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
        picture.load()  # which turns a TIFF upright
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
    if picture.format == "AVIF":
        _check_frames(content, limits)
    if content.startswith(b"\xff\xd8"):  # also where Pillow calls it MPO
        check_passes(content, pixels, limits)


def check_passes(jpeg: bytes, pixels: int, limits: Limits) -> None:
    """Raises `MediaError` with the code `too_slow` if a JPEG of so many pixels has too many scans."""
    scans = jpeg.count(b"\xff\xda")
    if scans * max(pixels, 1 << 16) > MAX_PASSES * limits.max_pixels:
        raise MediaError("too_slow", f"a JPEG of {scans} scans")


def _check_frames(avif: bytes, limits: Limits) -> None:
    """Decodes the first frame of all pictures in a file where none may exceed `max_pixels`, since boxes may lie."""
    deadline, options = time.monotonic() + limits.decode_seconds, {"max_pixels": str(limits.max_pixels)}
    with av.open(io.BytesIO(avif), "r", format="mov", options={"protocol_whitelist": "none"}) as container:
        for stream in container.streams.video:
            stream.codec_context.options = options
            container.seek(0)
            next(container.demux(stream)).decode()
            if time.monotonic() > deadline:
                raise MediaError("too_slow", f"decoding takes more than {limits.decode_seconds:g} s")


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
    """Returns the lowest and the highest finite value of a picture of more than 8 bits; (0, 255) for others."""
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
