"""Cursors: what a list has given already, in a text that the client brings back for the next page.

The service keeps nothing. A cursor holds ids and not a place in a list, so that a page repeats nothing even where the
user has liked something meanwhile and the list is another one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence

from serving.api.errors import ApiError
from serving.settings import MAX_CURSOR, MAX_IDS

DIGEST = 8  # bytes
MAX_UNPACKED = 1 << 20  # bytes


def write(run: str, given: Sequence[str]) -> str | None:
    """Returns a cursor of URL-safe characters; None where it would hold too much, and the list ends here."""
    plain = json.dumps([run, *given], ensure_ascii=False).encode()
    if len(given) > MAX_IDS or len(plain) > MAX_UNPACKED:
        return None
    packed = zlib.compress(plain, 9)
    cursor = base64.urlsafe_b64encode(_digest(packed) + packed).decode().rstrip("=")
    return cursor if len(cursor) <= MAX_CURSOR else None


def read(cursor: str, run: str) -> list[str]:
    """Returns the ids that a cursor holds.

    Raises:
        ApiError: it is damaged, or of another run than the one that answers.
    """
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, packed = content[:DIGEST], content[DIGEST:]
        plain = zlib.decompressobj().decompress(packed, MAX_UNPACKED) if digest == _digest(packed) else b""
        of, *given = json.loads(plain)
        if not all(isinstance(item_id, str) for item_id in (of, *given)) or len(given) > MAX_IDS:
            raise ValueError
    except (ValueError, TypeError, zlib.error, RecursionError) as error:
        raise ApiError(422, "bad_cursor", "The cursor is damaged: send it as it came, or begin without one.") from error
    if of != run:
        raise ApiError(409, "stale_cursor", "The cursor is of another run than the one served now: begin without one.")
    return given


def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=DIGEST).digest()
