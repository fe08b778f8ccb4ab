"""What an operator is, and how one is applied to rows that may be bad.

An operator knows nothing of Ray: a unit test, an actor pool of Ray Data and a Serve replica call the same object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.chat.base import Failure
from storage.errors import UserError

ISSUE = pa.struct([("severity", pa.string()), ("code", pa.string()), ("detail", pa.string())])
WORK = pa.struct([("operator", pa.string()), ("source", pa.string()), ("seconds", pa.float64())])
KEPT, REJECTED = "kept", "rejected"
REJECTS = pa.schema([(name, pa.string()) for name in ("item_id", "stage", "severity", "code", "detail")])


class Operator(ABC):
    """Columns in, more columns out, one row for each row.

    Concrete operators are frozen dataclasses: their fields are their configuration. `version` is raised when results
    change, so that finished runs are computed anew.

    Attributes:
        version: of the code that makes the results.
        input_columns: columns that the operator reads.
        key_columns: of these, or in place of them, the ones whose content decides the result (`media_digest` stands
            for the pixels of `frames`); empty where results are not worth a cache.
    """

    version: ClassVar[int] = 1
    input_columns: ClassVar[tuple[str, ...]]
    key_columns: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def output_schema(self) -> pa.Schema:
        """Names and types of the columns that are added or replaced."""

    def setup(self) -> None:  # noqa: B027 - many operators have nothing to load
        """Loads weights; called once per process before the first table."""

    @abstractmethod
    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table with the output columns, rows in the same order."""


def with_outcome(table: pa.Table) -> pa.Table:
    """Adds what rows travel through a stream with: `outcome` (all kept), `issues` and `work` (all empty).

    `work` says of operators behind a cache where a row's result came from, and the wall seconds that it took; see
    `operators.cached`.
    """
    rows = table.num_rows
    columns = {
        "outcome": pa.array([KEPT] * rows, pa.string()),
        "issues": pa.array([[]] * rows, pa.list_(ISSUE)),
        "work": pa.array([[]] * rows, pa.list_(WORK)),
    }
    return set_columns(table, columns)


def set_columns(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """Adds columns, replacing those of the same name."""
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.append_column(name, values) if position < 0 else table.set_column(position, name, values)
    return table


def with_failures(issues: pa.ChunkedArray, failures: Mapping[int, Iterable[Failure]]) -> pa.Array:
    """Returns the column `issues` with one of severity `degraded` for each failure of a model, by row."""
    rows = issues.to_pylist()
    for row, found in failures.items():
        rows[row] += [{"severity": "degraded", "code": one.code, "detail": one.detail[:500]} for one in found]
    return pa.array(rows, pa.list_(ISSUE))


def apply(operator: Operator, table: pa.Table) -> pa.Table:
    """Applies an operator to the kept rows of a stream; rejected rows pass with nulls.

    When a batch fails, its halves are tried, down to the single rows that cannot be processed; those are rejected
    with the code `operator_error`. One bad row therefore costs itself alone.

    Raises:
        KeyError: the table lacks a declared input column, which is no row's fault.
        UserError: the operator's settings cannot work, which is no row's fault either.
    """
    missing = [name for name in operator.input_columns if name not in table.column_names]
    if missing:
        raise KeyError(f"{type(operator).__name__} reads {', '.join(missing)}: put an operator before it that adds it")
    kept = pc.equal(table["outcome"], KEPT)
    alive = table.filter(kept)
    if alive.num_rows == table.num_rows:
        return _apply_or_split(operator, table)
    passed = _with_nulls(operator, table.filter(pc.invert(kept)))
    if alive.num_rows == 0:
        return passed
    done = _apply_or_split(operator, alive)
    return pa.concat_tables([done, passed.select(done.column_names)])


def _apply_or_split(operator: Operator, table: pa.Table) -> pa.Table:
    if table.num_rows == 0:
        return _with_nulls(operator, table)
    try:
        return operator(table)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a row does to a model, it must not stop the stream
        if table.num_rows == 1:
            return _reject(_with_nulls(operator, table), f"{type(operator).__name__}: {type(error).__name__}: {error}")
    half = table.num_rows // 2
    return pa.concat_tables(
        [_apply_or_split(operator, table.slice(0, half)), _apply_or_split(operator, table.slice(half))]
    )


def _with_nulls(operator: Operator, table: pa.Table) -> pa.Table:
    return set_columns(table, {field.name: pa.nulls(table.num_rows, field.type) for field in operator.output_schema})


def _reject(row: pa.Table, detail: str) -> pa.Table:
    issues = [*row["issues"][0].as_py(), {"severity": REJECTED, "code": "operator_error", "detail": detail[:500]}]
    return set_columns(
        row, {"outcome": pa.array([REJECTED]), "issues": pa.array([issues], type=row.schema.field("issues").type)}
    )


def rejects_table(rejects: pl.DataFrame, *, stage: str) -> pa.Table:
    """Rows (item_id, severity, code, detail) as a rejects table of a stage."""
    return (
        rejects.with_columns(stage=pl.lit(stage))
        .select(REJECTS.names)
        .to_arrow(compat_level=pl.CompatLevel.oldest())
        .cast(REJECTS)
    )
