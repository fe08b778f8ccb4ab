"""Arrow columns as arrays, arrays as Arrow columns, and rows found by their id: one way for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import files
from storage.errors import ArtifactError
from storage.run import RunDir

if TYPE_CHECKING:
    from models.common.jagged import Jagged

Column: TypeAlias = pa.Array | pa.ChunkedArray
Ids: TypeAlias = Column | Sequence[str]


def matrix_column(matrix: np.ndarray, valid: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """Returns a matrix [N, D] as a column: fixed_size_list<float>[D], of integers fixed_size_list<int32>[D].

    Args:
        valid: bool [N], False for rows that become NULL.
    """
    kind = pa.float32() if np.issubdtype(matrix.dtype, np.floating) else pa.int32()
    values = pa.array(matrix.reshape(-1), kind)
    mask = None if valid is None else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(values, type=pa.list_(kind, matrix.shape[1]), mask=mask)


def matrix_of(column: Column) -> np.ndarray:
    """Returns a fixed-size-list column without NULL as float32 [N, D], of integers int32 [N, D]; may be read-only.

    Raises:
        ValueError: a row is NULL, see `filled_matrix`.
    """
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} vectors are NULL")
    kind = np.int32 if pa.types.is_integer(column.type.value_type) else np.float32
    return np.asarray(_whole(column).flatten(), kind).reshape(len(column), column.type.list_size)


def filled_matrix(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Returns a fixed-size-list column as float32 [N, D] with zeros where it is NULL, and where it is not, bool [N]."""
    known = column.is_valid().to_numpy(zero_copy_only=False)
    values = np.zeros((len(column), column.type.list_size), np.float32)
    values[known] = matrix_of(column.drop_null())
    return values, known


def jagged_of(column: Column) -> Jagged:
    """Returns a list column of integers as tensors, straight from its Arrow buffers; int64 values are shared."""
    from models.common.jagged import from_arrays  # tables alone need no torch

    array = _whole(column)
    offsets = array.offsets.to_numpy()
    return from_arrays(array.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])


def list_column(lists: Jagged) -> pa.ListArray:
    """Returns lists of integers as a column, list<int64>, which `jagged_of` reads."""
    return pa.ListArray.from_arrays(lists.offsets.numpy().astype(np.int32), lists.values.numpy())


def positions(ids: Ids, among: Ids) -> np.ndarray:
    """Returns the position of each id among others, int64 [N]; -1 where it is missing, the first where it is twice."""
    found = pc.index_in(strings(ids), strings(among))
    return _whole(found.fill_null(-1)).to_numpy(zero_copy_only=False).astype(np.int64)


def rows_of(ids: Ids, table: pa.Table, name: str) -> pa.Table:
    """Returns the rows of a table with these values of `item_id`, in their order; the table itself where it is that.

    Args:
        name: of the table, for errors.

    Raises:
        ArtifactError: an id has no row.
    """
    if table["item_id"].equals(pa.chunked_array([_whole(strings(ids))])):
        return table
    at = positions(ids, table["item_id"])
    if missing := int((at < 0).sum()):
        raise ArtifactError(f"{missing} items are missing in {name}", name)
    return table.take(at)


def read_block(run: RunDir, ids: Ids, start: int, *parts: str, columns: Sequence[str]) -> pa.Table:
    """Returns what `read_rows` does; fast where these are the table's rows from `start` on.

    Raises:
        ArtifactError: an item has no row.
    """
    found = files.read_range(run.uri(*parts), start, start + len(ids), ["item_id", *columns])
    same = found["item_id"].equals(pa.chunked_array([_whole(strings(ids))]))
    return found if same else read_rows(run, ids, *parts, columns=columns)


def read_rows(run: RunDir, ids: Ids, *parts: str, columns: Sequence[str]) -> pa.Table:
    """Returns columns of one of a run's tables, and `item_id`, for these items in their order.

    Raises:
        ArtifactError: an item has no row.
    """
    return rows_of(ids, run.read_table(*parts, columns=["item_id", *columns]), "/".join(parts))


def _whole(column: Column) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):  # one chunk is not copied: it may be mapped
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def strings(ids: Ids) -> Column:
    """Returns ids as a column."""
    return ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.string())
