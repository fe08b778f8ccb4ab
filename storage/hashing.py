"""One seeded hash for ids, contents, tokens, orders and splits, so that every process and version agrees.

XXH3-64 over UTF-8 bytes, or over little-endian float32; the seed separates uses that must not correlate.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

BLOCK_ROWS = 16_384


def hash_strings(values: Iterable[str], *, seed: int = 0) -> np.ndarray:
    """Hashes strings to uint64 [N].

    >>> hash_strings(["a", "b"]).dtype.name
    'uint64'
    """
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(value.encode(), seed) for value in values), dtype=np.uint64)


def hash_rows(values: np.ndarray) -> np.ndarray:
    """Hashes the rows of a matrix, float32 [N, D], to uint64 [N]; rows of equal numbers hash alike, -0.0 as 0.0.

    >>> hash_rows(np.zeros((2, 3), np.float32)).dtype.name
    'uint64'
    """
    digest, width = xxhash.xxh3_64_intdigest, 4 * values.shape[1]
    hashes = np.empty(len(values), np.uint64)
    for start in range(0, len(values), BLOCK_ROWS):
        block = values[start : start + BLOCK_ROWS]
        view = memoryview(np.add(block, 0, dtype="<f4").tobytes())  # -0.0 + 0 is 0.0
        hashes[start : start + len(block)] = [digest(view[at : at + width]) for at in range(0, len(view), width)]
    return hashes


def hash_order(ids: Iterable[str], *, seed: int = 0) -> np.ndarray:
    """Positions (int64 [N]) that sort rows by the hash of their id, ties by the id itself.

    Ray returns rows in any order and catalogues are often numbered by age or popularity: every fit, draw and split
    starts from this order, so that it depends on the set of ids and on nothing else.
    """
    column = pa.array(ids, pa.string())
    keys = pa.table({"hash": hash_strings(column.to_pylist(), seed=seed), "id": column})
    order = pc.sort_indices(keys, [("hash", "ascending"), ("id", "ascending")])
    return order.to_numpy().astype(np.int64)


def content_order(contents: np.ndarray, ids: Iterable[str]) -> np.ndarray:
    """Positions (int64 [N]) that sort rows by the hash of their content (uint64 [N]), equal ones by `hash_order`.

    Where contents differ, the order knows nothing of the ids: a renamed row keeps its place.
    """
    order = hash_order(ids)
    return order[np.argsort(contents[order], kind="stable")]


def fingerprint(text: str) -> str:
    """Hex digest (128 bits) of a canonical text."""
    return xxhash.xxh3_128_hexdigest(text.encode())
