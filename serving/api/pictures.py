"""Pictures in requests: base64 in JSON, or a URI, decoded within limits before anything else sees them."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from operators.media.images import DECODING, decode_image
from serving.api.errors import ApiError
from serving.settings import Settings
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources, read_limited, resolve


def small_picture(encoded: str, settings: Settings) -> bytes:
    """Returns a picture as a small PNG, with the pixels that an item's picture is embedded from.

    Args:
        encoded: the picture's file in base64, of a format that the catalogue may have, too.
        settings: how much it may cost.

    Raises:
        ApiError: it is no base64, too large, or no picture that decodes.
    """
    limits = _limits(settings)
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(422, "bad_picture", "picture: send the picture's file in base64.") from error
    if len(content) > limits.max_bytes:
        raise ApiError(413, "too_large", f"picture: send at most {limits.max_bytes:,} bytes.")
    return _small(content, limits, "picture")


def picture_at(uri: str, settings: Settings) -> bytes:
    """Returns the picture at a URI, as `small_picture`; relative ones lie below the first of the settings' roots.

    Raises:
        ApiError: it lies nowhere where pictures may lie, is too large, or is no picture that decodes.
    """
    if not settings.media_roots:
        raise ApiError(422, "bad_picture", "uri: this service reads no URIs (`media_roots`); send the picture itself.")
    sources, limits = Sources(settings.media_roots), _limits(settings)
    try:
        content = read_limited(resolve(uri, sources.roots[0], sources), limits, sources)
    except MediaError as error:
        raise ApiError(422, "bad_picture", f"uri: {error.code}; send the picture itself.") from error
    return _small(content, limits, "uri")


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_bytes=settings.max_picture_bytes,
        max_pixels=settings.max_picture_pixels,
        decode_seconds=settings.timeout_seconds,
    )


def _small(content: bytes, limits: Limits, field: str) -> bytes:
    try:
        with DECODING:
            pixels = decode_image(content, limits)
    except MediaError as error:
        raise ApiError(422, "bad_picture", f"{field}: {error}; send a JPEG, PNG or WebP.") from error
    small = io.BytesIO()
    Image.fromarray(pixels).save(small, "PNG", compress_level=1)
    return small.getvalue()
