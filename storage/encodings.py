"""Text files in UTF-8, block by block, whatever encoding they are in."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from typing import IO

BLOCK_BYTES = 1 << 22  # that are read at once
LONGEST = 1 << 26  # bytes of a line
SAMPLE_BYTES = 1 << 16  # of a file, in which its header ends
DAMAGED = "\ufffd".encode()


class Decoder:
    """Turns a text file into UTF-8 without a byte order mark, block by block; no block ends within a character.

    What has no mark is UTF-16 if it is full of zero bytes. Otherwise the first block that is not ASCII decides: what is
    not UTF-8 is damaged UTF-8 if it has more characters of several bytes than places that are none, and Windows-1252,
    which extends Latin-1, if not.
    """

    def __init__(self) -> None:
        self._wide: codecs.IncrementalDecoder | None = None
        self._encoding: str | None = None  # None before the first block; "ascii" while nothing is decided
        self._lines = 0

    def __call__(self, content: bytes) -> tuple[bytes, str | None]:
        """Returns the next block, and what was guessed of its encoding, as a predicate."""
        if self._encoding is None:
            content = self._begin(content)
        if self._wide is not None:
            return self._wide.decode(content).encode(), None
        before, self._lines = self._lines, self._lines + content.count(b"\n")
        if content.isascii():
            return content, None
        if self._encoding in ("ascii", "utf-8"):
            place = _first_damage(content)
            if place is None:
                self._encoding = "utf-8"
                return content, None
            mended = content.decode(errors="replace").encode()
            damages = mended.count(DAMAGED) - content.count(DAMAGED)
            characters = len(mended.translate(None, bytes(range(0xC0))))  # of several bytes, DAMAGED among them
            if self._encoding == "utf-8" or characters > 2 * damages:
                self._encoding, line = "utf-8", before + content.count(b"\n", 0, place) + 1
                return mended, f"is no UTF-8 in {damages} places, the first on line {line}, read as \ufffd"
        if self._encoding != "latin-1":
            with contextlib.suppress(UnicodeDecodeError):
                found = content.decode("cp1252").encode()
                self._encoding = "cp1252"
                return found, "is not UTF-8 and was read as Windows-1252"
        self._encoding = "latin-1"  # five bytes mean nothing in Windows-1252
        return content.decode("latin-1").encode(), "is not UTF-8 and was read as Latin-1"

    def _begin(self, content: bytes) -> bytes:
        start = content[:SAMPLE_BYTES]
        self._encoding = "utf-8" if content.startswith(codecs.BOM_UTF8) else "ascii"
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self._wide = codecs.getincrementaldecoder("utf-16")("replace")
        elif start.count(0) > len(start) / 4:
            little = start[1::2].count(0) > start[::2].count(0)
            self._wide = codecs.getincrementaldecoder("utf-16-le" if little else "utf-16-be")("replace")
        return content.removeprefix(codecs.BOM_UTF8)


def _first_damage(content: bytes) -> int | None:
    """Returns the position of the first byte that is no UTF-8; None where all are."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    for at in range(0, len(content), SAMPLE_BYTES):  # a copy of all as text would be as large as the block
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(content[at : at + SAMPLE_BYTES], final=at + SAMPLE_BYTES >= len(content))
        except UnicodeDecodeError as error:
            return at - held + error.start
    return None


def read_utf8(stream: IO[bytes], block_bytes: int) -> Iterator[tuple[bytes, str | None, bool]]:
    """Yields a text file in UTF-8 in blocks, what was guessed of their encoding, and whether they are the last one."""
    decoder, held, last = Decoder(), b"", False
    while not last:
        content = stream.read(block_bytes)
        last = len(content) < block_bytes
        content = held = held + content
        end = len(content) if last else max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
        if not (end or last) and len(content) < LONGEST:
            continue
        end = end or len(content)
        content, held = content[:end], content[end:]
        yield *decoder(content), last
