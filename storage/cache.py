"""A content-addressed store of small results, shared by runs and machines."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
from fsspec.implementations.local import LocalFileSystem

from storage import files

CHECKSUM_BYTES = 8
_log = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Cache:
    """One object per key, at `<uri>/<namespace>/<first two hex digits>/<key in hex>`.

    An object is the XXH3-64 of key and value, then the value. There is no index: a look-up opens the objects it asks
    for, so a cache may be larger than memory, and entries are deleted by deleting files. Any number of processes may
    write at once and die at any moment: an object appears whole, and one whose checksum is wrong counts as missing.

    A store that fails costs time and not the run, for what it holds can be computed again: reads that fail are misses,
    writes that fail are left out. Either is said once per process through `logging`.

    Attributes:
        uri: a folder at any fsspec URI; it need not exist.
    """

    uri: str

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there, in the order of the keys; remote objects are read concurrently.

        Raises:
            UserError: the scheme of the URI is unknown or its package is not installed.
        """
        fs, root = files.filesystem(self.uri)
        wanted = list(dict.fromkeys(keys))
        try:
            objects = fs.cat_ranges([_path(root, namespace, key) for key in wanted], None, None, on_error="return")
        except Exception as error:  # noqa: BLE001 - object stores raise what they like
            objects = [error] * len(wanted)
        found = {}
        for key, content in zip(wanted, objects, strict=True):
            if isinstance(content, BaseException):
                if not isinstance(content, FileNotFoundError):
                    _warn_once(root, "read, so its results are computed again", content)
            elif content[:CHECKSUM_BYTES] == _checksum(key, content[CHECKSUM_BYTES:]):
                found[key] = content[CHECKSUM_BYTES:]
        return found

    def put_many(self, namespace: str, values: Mapping[bytes, bytes]) -> None:
        """Stores values; what cannot be written is left out.

        Raises:
            UserError: the scheme of the URI is unknown or its package is not installed.
        """
        fs, root = files.filesystem(self.uri)
        objects = {_path(root, namespace, key): _checksum(key, value) + value for key, value in values.items()}
        if isinstance(fs, LocalFileSystem):
            failures = [error for path, content in objects.items() if (error := _try_to_write(Path(path), content))]
        else:
            try:
                fs.pipe(objects)  # object stores put whole objects, concurrently
                failures = []
            except Exception as error:  # noqa: BLE001 - object stores raise what they like
                failures = [error]
        if failures:
            _warn_once(root, "written, so new results are lost for later runs", failures[0])


def _path(root: str, namespace: str, key: bytes) -> str:
    name = key.hex()
    return files.join(root, namespace, name[:2], name)


def _checksum(key: bytes, value: bytes) -> bytes:
    return xxhash.xxh3_64_digest(key + value)


def _try_to_write(path: Path, content: bytes) -> Exception | None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return error
    return None


def _warn_once(root: str, what: str, error: BaseException) -> None:
    if (root, what) not in _warned:
        _warned.add((root, what))
        _log.warning("The cache %s cannot be %s (%s: %s).", root, what, type(error).__name__, error)
