"""The items of a run as the service shows, filters and finds them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.semantic_ids.suffixes import sid_string
from operators.columns import matrix_of, read_rows
from operators.log.partitions import item_hashes, item_ids, rows_among
from serving.filters import All, Condition, Filter, Not
from storage.hashing import hash_ids
from storage.run import RunDir

MOST_ATTRIBUTES, MOST_VALUES = 20, 50  # that can be chosen from
KEPT_MASKS = 64  # of filters that came last


class Catalogue:
    """N items by row; an item's row is its place in the order of the hashes of ids, as everywhere in a run.

    Attributes:
        ids: string [N].
        codes: of semantic IDs, int32 [N, L], suffix included.
        shown: what people see of every item, rows as of `ids`: item_id, title, description, caption, interests, sid
            (spelled), attributes, media.
    """

    def __init__(self, run: RunDir) -> None:
        """Reads a run whose stage `quantize` is complete.

        Raises:
            ArtifactError: an item is missing in an artifact.
        """
        self.ids, self._hashes = item_ids(run), item_hashes(run)
        described = read_rows(run, self.ids, "items", columns=["title", "description", "caption", "interests"])
        self.codes = matrix_of(read_rows(run, self.ids, "sids", columns=["codes"])["codes"])
        catalog = read_rows(run, self.ids, "catalog", "items", columns=["attributes", "media"])
        columns = {"item_id": self.ids, **{name: described[name] for name in described.column_names}}
        columns["sid"] = pa.array([sid_string(codes) for codes in self.codes.tolist()], pa.string())
        columns |= {name: catalog[name] for name in catalog.column_names}
        self.shown = pa.table(columns).combine_chunks()
        self._attributes = _attributes(self.shown["attributes"])
        self._mask = functools.lru_cache(KEPT_MASKS)(self._matching)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the row of each id, int64 [n]; -1 where the catalogue has no such item."""
        if not len(ids):
            return np.empty(0, np.int64)
        return self.rows_by_hash(hash_ids(list(ids)))

    def rows_by_hash(self, hashes: np.ndarray) -> np.ndarray:
        """Returns the row of each hash of an id, int64 [n]; -1 where the catalogue has no such item."""
        at, known = rows_among(self._hashes, hashes)
        return np.where(known, at, -1)

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Returns an item with all there is to show of it; None where the catalogue has no such item."""
        row = int(self.rows([item_id])[0])
        if row < 0:
            return None
        item: dict[str, Any] = self.shown.slice(row, 1).to_pylist()[0]
        values: dict[str, list[str]] = {}
        for name, value in item["attributes"] or ():
            values.setdefault(name, []).append(value)
        return {**item, "attributes": values}

    @functools.cached_property
    def attributes(self) -> dict[str, dict[str, int]]:
        """The commonest values of the attributes that most items have, and how many items have each value."""
        most = sorted(self._attributes.items(), key=lambda entry: len(entry[1][0]), reverse=True)[:MOST_ATTRIBUTES]
        return {name: dict(Counter(values.to_pylist()).most_common(MOST_VALUES)) for name, (_, values, _) in most}

    def matching(self, where: Filter) -> torch.Tensor:
        """Returns which items match a filter, bool [N], not to be written to."""
        mask: torch.Tensor = self._mask(where)
        return mask

    @property
    def names(self) -> list[str]:
        """Names of all attributes."""
        return list(self._attributes)

    def has_numbers(self, attribute: str) -> bool:
        """Whether a value of an attribute is a number."""
        return not np.isnan(self._attributes[attribute][2]).all()

    def numbers(self, attribute: str, rows: np.ndarray) -> np.ndarray:
        """Returns an attribute of items as numbers, float64 [n], NaN for none; of several values the last counts."""
        owner, at = self._pairs(attribute, rows)
        numbers = np.full(len(rows), np.nan)
        numbers[owner] = self._attributes[attribute][2][at]
        return numbers

    def values(self, attribute: str, rows: np.ndarray) -> np.ndarray:
        """Returns which of the V values of an attribute among items each of them has, bool [n, V]."""
        owner, at = self._pairs(attribute, rows)
        coded = self._attributes[attribute][1].take(pa.array(at)).dictionary_encode()
        has = np.zeros((len(rows), len(coded.dictionary)), bool)
        has[owner, coded.indices.to_numpy()] = True
        return has

    def _pairs(self, attribute: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns a pair for each value of items: a position in `rows`, and one among the values of the attribute."""
        owners = self._attributes[attribute][0]
        first, last = np.searchsorted(owners, rows), np.searchsorted(owners, rows, "right")
        owner = np.repeat(np.arange(len(rows)), last - first)
        before = np.cumsum(last - first) - (last - first)
        return owner, np.arange(len(owner)) + (first - before)[owner]

    def _matching(self, where: Filter) -> torch.Tensor:
        return torch.from_numpy(self._matches(where))

    def _matches(self, where: Filter) -> np.ndarray:
        if isinstance(where, Condition):
            return self._holds(where)
        if isinstance(where, Not):
            return ~self._matches(where.not_)
        parts = where.all if isinstance(where, All) else where.any
        combine = np.logical_and if isinstance(where, All) else np.logical_or
        found: np.ndarray = combine.reduce([self._matches(part) for part in parts])
        return found

    def _holds(self, condition: Condition) -> np.ndarray:
        mask = np.zeros(len(self), bool)
        if condition.attribute not in self._attributes:
            return mask
        rows, values, numbers = self._attributes[condition.attribute]
        if condition.among is not None:
            hit = pc.is_in(values, pa.array(condition.among, pa.string())).to_numpy(zero_copy_only=False)
        else:
            low = -np.inf if condition.at_least is None else condition.at_least
            high = np.inf if condition.at_most is None else condition.at_most
            hit = (numbers >= low) & (numbers <= high)  # NaN is within no bounds
        mask[rows[hit]] = True
        return mask


def _attributes(column: pa.ChunkedArray) -> dict[str, tuple[np.ndarray, pa.Array, np.ndarray]]:
    """Returns by the name of each attribute the rows that have it, its values, and these as numbers, NaN for none."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = pc.list_parent_indices(array.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))))
    pairs = pa.table({"row": rows, "name": array.keys, "value": array.items}).drop_null()
    found = {}
    for name in pairs["name"].unique().to_pylist():
        own = pairs.filter(pc.equal(pairs["name"], name)).combine_chunks()
        values = own["value"].combine_chunks()
        found[name] = (own["row"].to_numpy(), values, _numbers(values))
    return found


def _numbers(values: pa.Array) -> np.ndarray:
    """Returns strings as float64 [n], NaN where one is no number."""

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return np.nan

    distinct = values.dictionary_encode()
    known = np.array([number(text) for text in distinct.dictionary.to_pylist()], np.float64)
    return known[distinct.indices.to_numpy()]
