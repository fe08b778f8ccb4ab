"""Decode a medium whatever its name says: its first bytes tell a picture from a video."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from operators.media.images import decode_image
from operators.media.video import decode_video
from storage.media.limits import Limits, MediaError

PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")
VIDEOS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF: WMV
    b"FLV\x01",
    b"OggS",
    b"\0\0\1\xba",  # MPEG program stream
    b"\0\0\1\xb3",  # MPEG video
)
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # first in an ISO or QuickTime file (ISO 14496-12)
AVIF = (b"avif", b"avis")
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
TS_PACKETS = ((0, 188), (4, 192))  # of an MPEG transport stream: place of the first sync byte, bytes to the next


class Decoded(NamedTuple):
    """A medium's frames, RGB uint8 [H, W, 3] each."""

    frames: list[np.ndarray]
    video: bool


def decode(
    content: bytes, hint: str | None, limits: Limits, damaged: Callable[[str], None] = lambda detail: None
) -> Decoded:
    """Decodes a picture, or frames of a video.

    Args:
        content: of the file.
        hint: `video` or anything else; counts where the bytes do not tell, as of a GIF, of which then all frames do.
        limits: what it may cost.
        damaged: called with the detail where only a part of a video decodes.

    Raises:
        MediaError: `unsupported_picture`, or what `decode_image` and `decode_video` raise.
    """
    video = is_video(content)
    video = hint == "video" if video is None else video
    return Decoded(decode_video(content, limits, damaged) if video else [decode_image(content, limits)], video)


def is_video(content: bytes) -> bool | None:
    """Tells a video from a picture by its first bytes; None where they do not tell.

    Raises:
        MediaError: `unsupported_picture`: HEIC, whose decoders are not free to be shipped.
    """
    if content[4:8] == b"ftyp":
        end = min(int.from_bytes(content[:4], "big"), 80)
        brands = [content[8:12], *(content[at : at + 4] for at in range(16, end, 4))]  # the major, the compatible ones
        if any(brand in AVIF for brand in brands):
            return False
        if brands[0] in HEIC:
            raise MediaError("unsupported_picture", "HEIC pictures are not read: convert them to JPEG, WebP or AVIF")
    if content.startswith(PICTURES) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP"):
        return False
    riff = content[:4] == b"RIFF" and content[8:12] == b"AVI "
    sync = any(content[at::step][:3] == b"GGG" for at, step in TS_PACKETS)
    return True if riff or sync or content[4:8] in BOXES or content.startswith(VIDEOS) else None
