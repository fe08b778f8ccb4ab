"""Limits for untrusted input: which URIs may be opened and how much may be read from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt


class MediaError(Exception):
    """A medium that cannot be used; `code` is stable and ends in rejects/, the message is its detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """How much of one medium is read and decoded; the bounds in the annotations are checked in definitions.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height of a picture, checked before it is decoded, and of every frame of a video.
        max_seconds: duration of a video.
        max_side: longer side of a frame after decoding, in pixels; larger ones are shrunk.
        frames: frames taken of a video, at most.
        sampling: choice of frames: `uniform`, evenly over its length, or `scenes`, one of each of the shots that
            differ most.
        decode_seconds: wall seconds that decoding may take.
        fetch_seconds: wall seconds that an HTTP download may take.
    """

    max_bytes: PositiveInt = 64 << 20
    max_pixels: PositiveInt = 50_000_000
    max_seconds: PositiveFloat = 3_600.0
    max_side: Annotated[int, Field(ge=32)] = 384
    frames: PositiveInt = 4
    sampling: Literal["uniform", "scenes"] = "uniform"
    decode_seconds: PositiveFloat = 20.0
    fetch_seconds: PositiveFloat = 60.0

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after shrinking the longer side to `max_side`; neither falls below one pixel."""
        scale = min(1.0, self.max_side / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
