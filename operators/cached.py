"""Call an operator only where it is worth it, and only where its result is not known already."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import ISSUE, WORK, Operator, apply, set_columns, with_outcome
from operators.gate import CACHED_ONLY, OPEN
from storage.cache import Cache
from storage.errors import UserError
from storage.identity import identity, speed

REFUSED, CACHED, COMPUTED, EMPTY = "refused", "cached", "computed", "empty"
KEY_BYTES = 16
NULL_LENGTH = b"\xff" * 8


@dataclass(frozen=True)
class CachedOperator(Operator):
    """Conditional invocation: an operator behind a gate and a cache.

    Each row is `refused`, `cached`, `computed`, or `empty` where the operator had nothing to say, and says so in
    `work`, with one entry per invocation that it passed.

    A row is refused where its gate is not `open`; it gets NULLs and no issue. Where the gate is `cached_only`, a known
    result is given all the same.

    A result is known by the content of `key_columns` and by the operator's settings; weights that change under the same
    name or path go unnoticed. Rows of equal content share one result, also within a batch and without a cache, and all
    but the first of these count as cached. A row without a `media_digest`, where the operator goes by it, has no key:
    it is left to the operator, and nothing is kept. Nor is a result that came with an issue, so that the next run tries
    again, or one that is NULL throughout.

    The operator is set up before its first call and not in `setup`: a run that finds everything in the cache loads no
    model. Since no row is to blame, a set-up that fails then raises UserError, whatever the reason, and ends the run.

    Attributes:
        operator: what is called; it sees the columns that it reads, and no others.
        name: of the operator in `work` and, before a digest of its settings, of its folder in the cache.
        cache: URI of the cache (see `storage.cache`); None keeps nothing.
        gate: string column that says `open`, `cached_only` or why the row is refused; None opens all.
    """

    operator: Operator
    name: str
    cache: str | None = speed(None)
    gate: str | None = None

    @property
    def input_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the operator, its keys, the gate, and what rows travel with."""
        gate = (self.gate,) if self.gate else ()
        return tuple(dict.fromkeys((*_columns_of(self.operator), *self.operator.key_columns, *gate)))

    @property
    def output_schema(self) -> pa.Schema:
        """The operator's columns."""
        return self.operator.output_schema

    @property
    def folder(self) -> str:
        """The folder in the cache that holds what was computed with these settings."""
        return f"{self.name}-{_settings(self.operator).hex()[:12]}"

    def __call__(self, table: pa.Table) -> pa.Table:
        is_open, may_look = self._gates(table)
        folder, keys = self.folder, _keys(self.operator, table)
        found = self._look_up(folder, [key for key, may in zip(keys, may_look, strict=True) if may])
        asked, places = _plan(keys, list(found), is_open, may_look)
        computed, seconds = self._compute(table, asked)
        self._store(folder, [keys[row] for row in asked], computed)

        schema = self.operator.output_schema
        nothing = pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)
        known = pa.Table.from_batches(found.values(), schema)
        blank = [with_outcome(part).select(computed.column_names) for part in (nothing, known)]
        answers = pa.concat_tables([*blank, computed]).combine_chunks()
        taken = answers.take(pa.array(places))
        pairs = zip(table["issues"].to_pylist(), taken["issues"].to_pylist(), strict=True)
        told = np.where(_has_result(self.operator, computed), CACHED, np.where(_clean(computed), EMPTY, COMPUTED))
        source = np.concatenate([[REFUSED], np.full(len(found), CACHED), told]).astype(object)[places]
        source[asked] = np.where(told == EMPTY, EMPTY, COMPUTED)
        columns = {name: taken[name].combine_chunks() for name in schema.names}
        columns["issues"] = pa.array([[*before, *gained] for before, gained in pairs], pa.list_(ISSUE))
        spent = np.where((source == COMPUTED) | (source == EMPTY), seconds, 0.0).tolist()
        work = zip(table["work"].to_pylist(), source, spent, strict=True)
        columns["work"] = pa.array(
            [
                [*(before or ()), {"operator": self.name, "source": kind, "seconds": took}]
                for before, kind, took in work
            ],
            pa.list_(WORK),
        )
        return set_columns(table, columns)

    def _gates(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Tells which rows may be computed, and which may be looked up: bool [N] each."""
        if self.gate is None:
            return np.ones(table.num_rows, bool), np.ones(table.num_rows, bool)
        gate = table[self.gate].fill_null("")
        is_open = pc.equal(gate, OPEN).to_numpy()
        return is_open, is_open | pc.equal(gate, CACHED_ONLY).to_numpy()

    def _look_up(self, folder: str, keys: list[bytes | int]) -> dict[bytes | int, pa.RecordBatch]:
        """Returns the known results, each a batch of one row."""
        if self.cache is None:
            return {}
        found = Cache(self.cache).get_many(folder, [key for key in keys if isinstance(key, bytes)])
        schema = self.operator.output_schema
        rows = {key: _decode(value, schema) for key, value in found.items()}
        return {key: row for key, row in rows.items() if row is not None}

    def _compute(self, table: pa.Table, rows: list[int]) -> tuple[pa.Table, float]:
        """Calls the operator on some rows.

        Returns:
            For each of these rows the operator's columns, and in `issues` those that it gained; and the seconds that
            one row took. A row on which the operator raises keeps its place: it lacks this part alone.
        """
        table = table.select(_columns_of(self.operator))
        if len(rows) < table.num_rows:  # taking all rows would copy their pixels for nothing
            table = table.take(pa.array(rows, pa.int64()))
        if rows:
            _set_up(self.operator)
        start = time.perf_counter()
        done = apply(self.operator, table)
        seconds = (time.perf_counter() - start) / max(len(rows), 1)
        pairs = zip(table["issues"].to_pylist(), done["issues"].to_pylist(), strict=True)
        gained = [[{**issue, "severity": "degraded"} for issue in after[len(before) :]] for before, after in pairs]
        results = done.select(self.operator.output_schema.names).cast(self.operator.output_schema)
        return results.append_column("issues", pa.array(gained, pa.list_(ISSUE))), seconds

    def _store(self, folder: str, keys: list[bytes | int], computed: pa.Table) -> None:
        """Keeps the results that are worth it."""
        if self.cache is None or computed.num_rows == 0:
            return
        worth = _clean(computed) & _has_result(self.operator, computed)
        batch = computed.select(self.operator.output_schema.names).combine_chunks().to_batches()[0]
        kept = {key: row for row, key in enumerate(keys) if worth[row] and isinstance(key, bytes)}
        values = {key: batch.slice(row, 1).serialize().to_pybytes() for key, row in kept.items()}
        Cache(self.cache).put_many(folder, values)


def _clean(computed: pa.Table) -> np.ndarray:
    """Rows that came through without an issue: bool [N]."""
    return pc.equal(pc.list_value_length(computed["issues"]), 0).to_numpy()


def _has_result(operator: Operator, computed: pa.Table) -> np.ndarray:
    """Rows with a value in any of the operator's columns: bool [N]."""
    columns = [computed[name] for name in operator.output_schema.names]
    return functools.reduce(pc.or_, [column.is_valid() for column in columns]).to_numpy()


def _columns_of(operator: Operator) -> list[str]:
    """Returns what an operator is shown: the columns that it reads, and what rows travel with."""
    return list(dict.fromkeys((*operator.input_columns, "outcome", "issues")))


@functools.cache
def _set_up(operator: Operator) -> None:
    """Loads an operator's weights, once per process."""
    try:
        operator.setup()
    except (MemoryError, UserError):
        raise
    except Exception as error:
        name = type(operator).__name__
        raise UserError(f"{name} cannot be set up with these settings: {type(error).__name__}: {error}") from error


@functools.cache
def _settings(operator: Operator) -> bytes:
    """A digest of what results depend on beside the rows, and of the types that they are kept in."""
    types = [(field.name, str(field.type)) for field in operator.output_schema]
    return _digest(json.dumps([identity(operator), operator.key_columns, types], sort_keys=True).encode())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def _keys(operator: Operator, table: pa.Table) -> list[bytes | int]:
    """Returns the key of each row: a digest of settings and content, or the row's number where it has none."""
    if not operator.key_columns:
        return list(range(table.num_rows))
    parts = zip(*(_contents(table[name]) for name in operator.key_columns), strict=True)
    settings = _settings(operator)
    keys: list[bytes | int] = [_digest(settings + b"".join(row)) for row in parts]
    if "media_digest" in operator.key_columns:
        for row in np.flatnonzero(table["media_digest"].is_null()).tolist():
            keys[row] = row
    return keys


def _contents(column: pa.ChunkedArray) -> list[bytes]:
    """Returns every value as bytes behind their length, so that no two rows of values are written alike."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values = column.to_pylist()
    if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type):
        values = [None if value is None else json.dumps(value, default=repr).encode() for value in values]
    return [NULL_LENGTH if value is None else len(value).to_bytes(8, "little") + value for value in values]


def _plan(
    keys: list[bytes | int], found: list[bytes | int], is_open: np.ndarray, may_look: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Tells which rows the operator is called on, and where every row finds its answer.

    Returns:
        Rows in order, one for each key; and places, int64 [N]: 0 is NULL, then come the found ones, then these rows.
    """
    place = {key: position for position, key in enumerate(found, start=1)}
    asked: list[int] = []
    for row in np.flatnonzero(is_open).tolist():
        if keys[row] not in place:
            asked.append(row)
            place[keys[row]] = len(found) + len(asked)
    places = [place.get(key, 0) if may else 0 for key, may in zip(keys, may_look, strict=True)]
    return asked, np.array(places, np.int64)


def _decode(content: bytes, schema: pa.Schema) -> pa.RecordBatch | None:
    """Returns the row of a serialized batch without its schema; None where the content is no such row."""
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), schema)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError):
        return None
    return batch if batch.num_rows == 1 else None
