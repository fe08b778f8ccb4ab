"""Which URIs of an untrusted catalogue may be opened, and reading them within limits."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from storage import files
from storage.errors import UserError
from storage.media.limits import Limits, MediaError

HTTP = ("http", "https")


@dataclass(frozen=True)
class Sources:
    """Where media may lie beside the catalogue's own folder.

    Attributes:
        roots: further folders, as absolute paths or URIs (`/data/media`, `~/media`, `s3://bucket/media`).
        http: whether http and https URLs are fetched; from public addresses alone.
        allow_private: `host:port` pairs, as URLs give them, that are fetched though their addresses are private.
    """

    roots: tuple[str, ...] = ()
    http: bool = False
    allow_private: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        roots = tuple(files.absolute(root) if root.startswith("~") else root for root in self.roots)
        object.__setattr__(self, "roots", roots)
        for root in roots:
            if not root.startswith("/") and "://" not in root:
                raise UserError(f"Media root {root!r} is relative: give an absolute path or a URI.")
            if _scheme(root) in HTTP:
                raise UserError(f"Media root {root!r} is no folder: allow http instead.")


NOWHERE_ELSE = Sources()


def shown(uri: str) -> str:
    """Returns a URI as messages may show it: without credentials, query and fragment, which may hold a signature, and
    cut off after 200 characters, or before the content of a `data:` URI.

    >>> shown("https://ann:secret@host/a.jpg?signature=abc")
    'https://host/a.jpg'
    """
    uri = re.split("[?#]", re.sub(r"(?<=://)[^/?#]*@", "", uri))[0] if "://" in uri else uri
    short = re.split("[;,]", uri)[0][:200] if uri[:5].lower() == "data:" else uri[:200]
    return uri if short == uri else f"{short}…"


def resolve(uri: str, root: str, sources: Sources = NOWHERE_ELSE) -> str:
    """Returns the absolute URI of a medium, if it lies where media may lie.

    Relative URIs resolve against `root`. Links are followed before the check, so a link out of the roots is refused.
    Of http URLs only the scheme is judged here: their addresses are checked when they are connected to.

    Args:
        uri: as the catalogue gives it.
        root: URI of the catalogue.
        sources: places allowed beside the catalogue.

    Raises:
        MediaError: `scheme_not_allowed`, `outside_root`, or `unreadable` where it is no URI or path at all.
    """
    try:
        return _resolve(uri, root, sources)
    except (OSError, ValueError) as error:  # "http://[x", a lone surrogate, …
        raise MediaError("unreadable", f"{type(error).__name__}: no URI or path") from error


def placed(uri: str, root: str) -> str:
    """Returns a URI that names a medium of the catalogue at `root` from other catalogues, too.

    >>> placed("media/a.jpg", "s3://bucket/shop")
    's3://bucket/shop/media/a.jpg'
    """
    if _scheme(uri):
        return uri
    if (_scheme(root) or "file") != "file":
        return files.join(root, uri)
    path = os.path.join(files.filesystem(root)[1], uri)  # noqa: PTH118
    if not os.path.exists(path):  # noqa: PTH110 - a query, as in `_resolve`
        path = os.path.join(files.filesystem(root)[1], re.split("[?#]", uri)[0])  # noqa: PTH118
    return f"file://{quote(path)}"


def _resolve(uri: str, root: str, sources: Sources) -> str:
    if "\x00" in uri:
        raise MediaError("outside_root", "the URI holds a NUL byte")
    given = _scheme(uri)
    scheme = given or _scheme(root) or "file"
    full = uri if given else files.join(root, uri)
    if scheme in HTTP and sources.http:
        return full
    roots = [place for place in (root, *sources.roots) if (_scheme(place) or "file") == scheme]
    if scheme in HTTP or not roots:
        raise MediaError("scheme_not_allowed", f"{scheme}: is not the catalogue's scheme, and is not allowed beside it")
    if scheme == "file":
        folders = [os.path.realpath(files.filesystem(place)[1]) for place in roots]
        path = os.path.realpath(os.path.join(folders[0], unquote(urlsplit(uri).path) if given else uri))  # noqa: PTH118
        if not given and not os.path.exists(path):  # noqa: PTH110 - a name may hold "?"; else it parts a query
            path = os.path.realpath(os.path.join(folders[0], re.split("[?#]", uri)[0]))  # noqa: PTH118
    else:
        if "::" in full:  # to fsspec "a::b" is one file system inside another
            raise MediaError("scheme_not_allowed", "a chain of file systems")
        folders = [posixpath.normpath(place.split("://", 1)[1]) for place in roots]
        path = posixpath.normpath(full.split("://", 1)[1])
    if not any(f"{path}/".startswith(folder.rstrip("/") + "/") for folder in folders):
        raise MediaError("outside_root", "the path leaves the catalogue")
    return path if scheme == "file" else f"{scheme}://{path}"


def _scheme(uri: str) -> str:
    """Returns the scheme in lower case, "" for a plain path. A name with a colon (`item:7.jpg`) is a path."""
    if "://" not in uri:
        return "data" if uri[:5].lower() == "data:" else ""
    scheme = urlsplit(uri).scheme
    return "file" if scheme == "local" else scheme


def read_limited(uri: str, limits: Limits, sources: Sources = NOWHERE_ELSE) -> bytes:
    """Reads a file of at most `limits.max_bytes`.

    Args:
        uri: as `resolve` returns it.
        limits: limits of the read.
        sources: says which private hosts may be asked.

    Raises:
        MediaError: `missing`, `unreadable`, `empty` or `too_many_bytes`; for http, see `storage.media.http.fetch`.
        UserError: the package that reads the URI's scheme is not installed.
    """
    try:
        content = _read(uri, limits, sources)
    except FileNotFoundError as error:
        raise MediaError("missing", "there is no such file") from error
    except (MediaError, MemoryError, UserError):
        raise
    except Exception as error:  # object stores raise what they like
        raise MediaError("unreadable", f"{type(error).__name__}: {error}") from error
    if not content:
        raise MediaError("empty", "the file has no bytes")
    if len(content) > limits.max_bytes:
        raise MediaError("too_many_bytes", f"more than {limits.max_bytes} bytes")
    return content


def _read(uri: str, limits: Limits, sources: Sources) -> bytes:
    scheme = _scheme(uri)
    if scheme in HTTP:
        from storage.media.http import fetch  # its client takes a fifth of a second to import

        return fetch(uri, limits, sources.allow_private)
    if scheme:
        fs, path = files.filesystem(uri)
        with fs.open(path, "rb") as stream:
            return bytes(stream.read(limits.max_bytes + 1))
    with open(uri, "rb", opener=_without_waiting) as stream:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise MediaError("unreadable", "not a regular file")
        return stream.read(min(about.st_size, limits.max_bytes + 1))


def _without_waiting(path: str, flags: int) -> int:
    """Opens neither a link that took a file's place since `resolve`, nor a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
