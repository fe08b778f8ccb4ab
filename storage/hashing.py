"""One seeded hash for ids, tokens, orders and splits, so that every process and version agrees.

XXH3-64 over UTF-8 bytes; the seed separates uses that must not correlate.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash


def hash_strings(values: Iterable[str], *, seed: int = 0) -> np.ndarray:
    """Hash strings to uint64 [N].

    >>> hash_strings(["a", "b"]).dtype.name
    'uint64'
    """
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(value.encode(), seed) for value in values), dtype=np.uint64)


def hash_order(ids: Iterable[str], *, seed: int = 0) -> np.ndarray:
    """Positions (int64 [N]) that sort rows by the hash of their id, ties by the id itself.

    Ray returns rows in any order and catalogues are often numbered by age or popularity: every fit, draw and split
    starts from this order, so that it depends on the set of ids and on nothing else.
    """
    values = list(ids)
    hashes = hash_strings(values, seed=seed).tolist()
    return np.array(sorted(range(len(values)), key=lambda i: (hashes[i], values[i])), dtype=np.int64)


def fingerprint(text: str) -> str:
    """Hex digest (128 bits) of a canonical text."""
    return xxhash.xxh3_128_hexdigest(text.encode())
