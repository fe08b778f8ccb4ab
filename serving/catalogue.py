"""The items of a run as the service shows, filters and finds them."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.common.growing import Growing
from models.common.jagged import shared
from models.semantic_ids.suffixes import sid_string
from operators.columns import matrix_of, read_rows
from operators.log.partitions import item_hashes, item_ids, rows_among
from serving.filters import All, Condition, Filter, Not
from storage.hashing import hash_ids
from storage.run import RunDir

MOST_ATTRIBUTES, MOST_VALUES = 20, 50  # that can be chosen from
KEPT_MASKS = 64  # of filters that came last
_Values: TypeAlias = tuple[np.ndarray, pa.Array, np.ndarray]  # of an attribute: rows, values, and these as numbers
NO_VALUES: _Values = (np.empty(0, np.int64), pa.array([], pa.string()), np.empty(0))


class Catalogue:
    """N items by row; an item's row is its place in the order of the hashes of ids, as everywhere in a run.

    Behind them are those that were posted; who has a catalogue goes on reading it as it was.

    Attributes:
        ids: of the run's own items, string [N].
        codes: of semantic IDs, int32 [N + n, L], suffix included.
        shown: what people see of the run's own items: item_id, title, description, caption, interests, sid (spelled),
            attributes, media.
        posted: likewise of those that were posted.
        times: when these were posted, int64 [n], microseconds.
        gone: rows that must not be in any answer: hidden, deleted, or of an item that was posted anew; int64 [g].
        version: of the posted items.
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
        self._mask = functools.lru_cache(KEPT_MASKS)(lambda where: _matches(where, self._attributes, len(self.ids)))
        self._codes, self._rows = Growing(shared(self.codes)), dict[int, int]()
        self.posted, self._posted_attributes = self.shown.slice(0, 0), dict[str, _Values]()
        self.times, self.gone, self.version = np.empty(0, np.int64), np.empty(0, np.int64), 0

    def __len__(self) -> int:
        return len(self.codes)

    def followed(
        self,
        items: pa.Table,
        codes: np.ndarray,
        times: Sequence[int],
        rows: Mapping[str, int],
        gone: Sequence[int],
        version: int,
    ) -> Catalogue:
        """Returns these items with others behind them; one thread at a time, and always of the newest catalogue.

        Args:
            items: what people see of the others, as `shown`.
            codes: of their semantic IDs, int32 [n, L].
            times: when they were posted, microseconds.
            rows: where items are now of which something was written; -1 for nowhere.
            gone: all rows that must not be in any answer.
            version: of this state.
        """
        new = copy.copy(self)
        new.codes = self._codes.append(torch.from_numpy(codes)).numpy()
        new.posted = pa.concat_tables([self.posted, items.cast(self.posted.schema)]).combine_chunks()
        new._posted_attributes = _attributes(new.posted["attributes"])
        changed = dict(zip(hash_ids(list(rows)).tolist(), rows.values(), strict=True)) if rows else {}
        new._rows = {**self._rows, **changed}
        new.times = np.concatenate([self.times, np.array(times, np.int64)])
        new.gone, new.version = np.array(gone, np.int64), version
        return new

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the row of each id, int64 [n]; -1 where the catalogue has no such item."""
        if not len(ids):
            return np.empty(0, np.int64)
        return self.rows_by_hash(hash_ids(list(ids)))

    def own_row(self, item_id: str) -> int:
        """Returns the row of an item of the run, deleted or not; -1 where the run has no such item."""
        at, known = rows_among(self._hashes, hash_ids([item_id]))
        return int(at[0]) if known[0] else -1

    def rows_by_hash(self, hashes: np.ndarray) -> np.ndarray:
        """Returns the row of each hash of an id, int64 [n]; -1 where the catalogue has no such item."""
        at, known = rows_among(self._hashes, hashes)
        found = np.where(known, at, -1)
        if self._rows:
            found = np.array([self._rows.get(int(h), row) for h, row in zip(hashes, found.tolist(), strict=True)])
        return found.astype(np.int64)

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Returns an item with all there is to show of it; None where the catalogue has no such item."""
        row = int(self.rows([item_id])[0])
        if row < 0:
            return None
        item = self.described([row])[0]
        values: dict[str, list[str]] = {}
        for name, value in item["attributes"] or ():
            values.setdefault(name, []).append(value)
        return {**item, "attributes": values}

    def described(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Returns what people see of the items at rows."""
        own = len(self.ids)
        tables = [(self.shown, [row for row in rows if row < own]), (self.posted, [r - own for r in rows if r >= own])]
        found = [table.select(columns or table.column_names).take(pa.array(at, pa.int64())) for table, at in tables]
        each = [iter(table.to_pylist()) for table in found]
        return [next(each[row >= own]) for row in rows]

    @functools.cached_property
    def attributes(self) -> dict[str, dict[str, int]]:
        """The commonest values of the attributes that most of the run's items have, and how many have each value."""
        most = sorted(self._attributes.items(), key=lambda entry: len(entry[1][0]), reverse=True)[:MOST_ATTRIBUTES]
        return {name: dict(Counter(values.to_pylist()).most_common(MOST_VALUES)) for name, (_, values, _) in most}

    def matching(self, where: Filter) -> torch.Tensor:
        """Returns which items match a filter, bool [N + n], not to be written to."""
        mask: np.ndarray = self._mask(where)
        if len(self.posted):
            mask = np.concatenate([mask, _matches(where, self._posted_attributes, len(self.posted))])
        return torch.from_numpy(mask)

    @property
    def names(self) -> list[str]:
        """Names of all attributes of the run's own items."""
        return list(self._attributes)

    def has_numbers(self, attribute: str) -> bool:
        """Whether a value of an attribute is a number."""
        return not np.isnan(self._attributes[attribute][2]).all()

    def numbers(self, attribute: str, rows: np.ndarray) -> np.ndarray:
        """Returns an attribute of items as numbers, float64 [n], NaN for none; of several values the last counts."""
        owner, _, numbers = self._pairs(attribute, rows)
        found = np.full(len(rows), np.nan)
        found[owner] = numbers
        return found

    def values(self, attribute: str, rows: np.ndarray) -> np.ndarray:
        """Returns which of the V values of an attribute among items each of them has, bool [n, V]."""
        owner, values, _ = self._pairs(attribute, rows)
        coded = values.dictionary_encode()
        has = np.zeros((len(rows), len(coded.dictionary)), bool)
        has[owner, coded.indices.to_numpy()] = True
        return has

    def _pairs(self, attribute: str, rows: np.ndarray) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """Returns each value of an attribute that items have: a position in `rows`, the value, and it as a number."""
        found = list[_Values]()
        for attributes, first in ((self._attributes, 0), (self._posted_attributes, len(self.ids))):
            owners, values, numbers = attributes.get(attribute, NO_VALUES)
            low, high = np.searchsorted(owners, rows - first), np.searchsorted(owners, rows - first, "right")
            owner = np.repeat(np.arange(len(rows)), high - low)
            before = np.cumsum(high - low) - (high - low)
            at = np.arange(len(owner)) + (low - before)[owner]
            found.append((owner, values.take(pa.array(at)), numbers[at]))
        (own, texts, numbers), (posted, more, others) = found
        return np.concatenate([own, posted]), pa.concat_arrays([texts, more]), np.concatenate([numbers, others])


def _matches(where: Filter, attributes: Mapping[str, _Values], items: int) -> np.ndarray:
    if isinstance(where, Condition):
        return _holds(where, attributes, items)
    if isinstance(where, Not):
        return ~_matches(where.not_, attributes, items)
    parts = where.all if isinstance(where, All) else where.any
    combine = np.logical_and if isinstance(where, All) else np.logical_or
    found: np.ndarray = combine.reduce([_matches(part, attributes, items) for part in parts])
    return found


def _holds(condition: Condition, attributes: Mapping[str, _Values], items: int) -> np.ndarray:
    mask = np.zeros(items, bool)
    if condition.attribute not in attributes:
        return mask
    rows, values, numbers = attributes[condition.attribute]
    if condition.among is not None:
        hit = pc.is_in(values, pa.array(condition.among, pa.string())).to_numpy(zero_copy_only=False)
    else:
        low = -np.inf if condition.at_least is None else condition.at_least
        high = np.inf if condition.at_most is None else condition.at_most
        hit = (numbers >= low) & (numbers <= high)  # NaN is within no bounds
    mask[rows[hit]] = True
    return mask


def _attributes(column: pa.ChunkedArray) -> dict[str, _Values]:
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
    """Returns strings as float64 [n], NaN where one is no finite number."""

    def number(text: str) -> float:
        try:
            return found if np.isfinite(found := float(text)) else np.nan
        except ValueError:
            return np.nan

    distinct = values.dictionary_encode()
    known = np.array([number(text) for text in distinct.dictionary.to_pylist()], np.float64)
    return known[distinct.indices.to_numpy()]
