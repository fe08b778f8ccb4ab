"""Pictures in requests: base64 in JSON, decoded within limits before anything else sees them."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from operators.media.images import DECODING, decode_image
from serving.api.errors import ApiError
from serving.settings import Settings
from storage.media.limits import Limits, MediaError


def small_picture(encoded: str, settings: Settings) -> bytes:
    """Returns a picture as a small PNG, with the pixels that an item's picture is embedded from.

    Args:
        encoded: the picture's file in base64, of a format that the catalogue may have, too.
        settings: how much it may cost.

    Raises:
        ApiError: it is no base64, too large, or no picture that decodes.
    """
    limits = Limits(
        max_bytes=settings.max_picture_bytes,
        max_pixels=settings.max_picture_pixels,
        decode_seconds=settings.timeout_seconds,
    )
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(422, "bad_picture", "picture: send the picture's file in base64.") from error
    if len(content) > limits.max_bytes:
        raise ApiError(413, "too_large", f"picture: send at most {limits.max_bytes:,} bytes.")
    try:
        with DECODING:
            pixels = decode_image(content, limits)
    except MediaError as error:
        raise ApiError(422, "bad_picture", f"picture: {error}; send a JPEG, PNG or WebP.") from error
    small = io.BytesIO()
    Image.fromarray(pixels).save(small, "PNG", compress_level=1)
    return small.getvalue()
