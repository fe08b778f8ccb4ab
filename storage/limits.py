"""Limits for untrusted input: which URIs may be opened and how much may be read from them."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage import files


class MediaError(Exception):
    """A medium that cannot be used; `code` is stable and ends in rejects/, the message is its detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """How much of one medium is read and decoded.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height of a picture, checked before it is decoded, and of every frame of a video.
        max_seconds: duration of a video.
        max_side: longer side of a frame after decoding, in pixels; larger ones are shrunk.
        frames: frames sampled from a video, evenly over its length.
        decode_seconds: wall seconds that the decoding of a video may take.
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 50_000_000
    max_seconds: float = 3_600.0
    max_side: int = 384
    frames: int = 4
    decode_seconds: float = 20.0


def resolve(uri: str, root: str) -> str:
    """The absolute URI of a medium, if it lies inside the catalogue.

    Relative URIs resolve against `root`. Links are followed before the check, so a link out of the root is refused.

    Args:
        uri: as the catalogue gives it.
        root: URI of the catalogue.

    Raises:
        MediaError: `scheme_not_allowed`, `outside_root`, or `unreadable` where it is no URI or path at all.
    """
    try:
        return _resolve(uri, root)
    except (OSError, RuntimeError, ValueError) as error:  # "http://[x", a loop of links, a lone surrogate, …
        raise MediaError("unreadable", f"{type(error).__name__}: {error}") from error


def _resolve(uri: str, root: str) -> str:
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    root_scheme = urlsplit(root).scheme if "://" in root else "file"
    if scheme and scheme != root_scheme:
        raise MediaError("scheme_not_allowed", f"{scheme}:// is not the scheme of the catalogue")
    if "\x00" in uri:
        raise MediaError("outside_root", "the URI holds a NUL byte")
    if root_scheme in ("file", "local"):
        base = Path(files.filesystem(root)[1]).resolve()
        target = (base / (unquote(urlsplit(uri).path) if scheme else uri)).resolve()
        if not target.is_relative_to(base):
            raise MediaError("outside_root", "the path leaves the catalogue")
        return str(target)
    joined = uri if scheme else files.join(root, uri)
    head, path = joined.split("://", 1)
    normal = posixpath.normpath(path)
    if not f"{normal}/".startswith(posixpath.normpath(root.split("://", 1)[1]) + "/"):
        raise MediaError("outside_root", "the path leaves the catalogue")
    return f"{head}://{normal}"


def read_limited(uri: str, limits: Limits) -> bytes:
    """Read a file of at most `limits.max_bytes`.

    Raises:
        MediaError: `missing`, `unreadable`, `empty` or `too_many_bytes`.
    """
    try:
        fs, path = files.filesystem(uri)
        with fs.open(path, "rb") as stream:
            content: bytes = stream.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise MediaError("missing", "there is no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # object stores raise what they like
        raise MediaError("unreadable", f"{type(error).__name__}: {error}") from error
    if not content:
        raise MediaError("empty", "the file has no bytes")
    if len(content) > limits.max_bytes:
        raise MediaError("too_many_bytes", f"more than {limits.max_bytes} bytes")
    return content
