"""One seeded hash for ids, contents, tokens, orders and splits, so that every process and version agrees.

XXH3-64 over UTF-8 bytes, or over little-endian float32; the seed separates uses that must not correlate.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

Strings: TypeAlias = Iterable[str] | pa.Array | pa.ChunkedArray
BLOCK_ROWS = 16_384
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the odd constant of SplitMix64


def hash_strings(values: Strings, *, seed: int = 0) -> np.ndarray:
    """Hashes strings to uint64 [N]; of an Arrow column, Python holds one block at a time.

    >>> hash_strings(["a", "b"]).dtype.name
    'uint64'
    """
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(value.encode(), seed) for value in _texts(values)), dtype=np.uint64)


def _texts(values: Strings) -> Iterable[str]:
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    blocks = (values.slice(start, BLOCK_ROWS) for start in range(0, len(values), BLOCK_ROWS))
    return chain.from_iterable(block.to_pylist() for block in blocks)


def hash_ids(values: Strings) -> np.ndarray:
    """Hashes ids or tokens to 63 bits, int64 [N], never 0: the upper bits of `hash_strings`, so in its order.

    >>> hash_ids(["a"]).dtype.name
    'int64'
    """
    return np.maximum(hash_strings(values) >> np.uint64(1), 1).astype(np.int64)


def hash_numbers(*columns: np.ndarray, seed: int) -> np.ndarray:
    """Hashes rows of integers, [N] each, to uint64 [N]: for draws that follow from what they are about and a seed."""
    key = np.full(len(columns[0]), seed, np.uint64)
    for values in columns:
        key = _mixed(key ^ values.astype(np.uint64))
    return key


def draw_uniform(key: np.ndarray, number: int) -> np.ndarray:
    """Returns random numbers from 0 to below 1, float64 [N], the same for the same key and number."""
    return (_mixed(key + np.array([number + 1], np.uint64) * GOLDEN) >> np.uint64(11)) * 2.0**-53


def _mixed(values: np.ndarray) -> np.ndarray:
    """Returns the output function of SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


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


def hash_order(ids: Strings, *, seed: int = 0) -> np.ndarray:
    """Positions (int64 [N]) that sort rows by the hash of their id, ties by the id itself.

    Ray returns rows in any order and catalogues are often numbered by age or popularity: every fit, draw and split
    starts from this order, so that it depends on the set of ids and on nothing else.
    """
    column = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.string())
    keys = pa.table({"hash": hash_strings(column, seed=seed), "id": column})
    order = pc.sort_indices(keys, [("hash", "ascending"), ("id", "ascending")])
    return order.to_numpy().astype(np.int64)


def content_order(contents: np.ndarray, ids: Strings) -> np.ndarray:
    """Positions (int64 [N]) that sort rows by the hash of their content (uint64 [N]), equal ones by `hash_order`.

    Where contents differ, the order knows nothing of the ids: a renamed row keeps its place.
    """
    order = hash_order(ids)
    return order[np.argsort(contents[order], kind="stable")]


def fingerprint(text: str) -> str:
    """Hex digest (128 bits) of a canonical text."""
    return xxhash.xxh3_128_hexdigest(text.encode())
