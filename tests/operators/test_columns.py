from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common.jagged import gather
from operators.columns import (
    filled_matrix,
    jagged_of,
    matrix_column,
    matrix_of,
    positions,
    read_block,
    read_rows,
    rows_of,
)
from storage.errors import ArtifactError
from storage.run import RunDir

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = st.lists(st.sampled_from("abcdef"), max_size=12)


@pytest.mark.parametrize(
    ("kind", "column"), [(np.float32, pa.float32()), (np.float64, pa.float32()), (np.int64, pa.int32())]
)
def test_a_matrix_comes_back_from_its_column(kind: type, column: pa.DataType) -> None:
    found = matrix_column(MATRIX.astype(kind)[:, ::-1])
    assert found.type == pa.list_(column, 3)
    for same in (found, pa.chunked_array([found.slice(0, 1), found.slice(1)])):
        np.testing.assert_array_equal(matrix_of(same), MATRIX[:, ::-1])
        assert matrix_of(same).dtype == column.to_pandas_dtype()
    np.testing.assert_array_equal(matrix_of(found.slice(1, 2)), MATRIX[1:3, ::-1])
    assert matrix_of(found.slice(0, 0)).shape == matrix_of(pa.chunked_array([], found.type)).shape == (0, 3)


def test_vectors_that_are_null_are_zeros_or_an_error() -> None:
    valid = np.array([True, False, True, True])
    column = matrix_column(MATRIX, valid)
    assert column.is_null().to_pylist() == (~valid).tolist()
    for start in (0, 1):
        values, known = filled_matrix(column.slice(start))
        np.testing.assert_array_equal(known, valid[start:])
        np.testing.assert_array_equal(values, np.where(valid[:, None], MATRIX, 0)[start:])
    with pytest.raises(ValueError, match="1 of 4 vectors are NULL"):
        matrix_of(column)


def test_lists_of_a_slice_and_their_gather() -> None:
    column = pa.array([[9], [1, 2], [], [3]], pa.list_(pa.int32())).slice(1)
    values, offsets, _ = gather(jagged_of(column), torch.tensor([2, 1, 0, 0]))
    assert (values.tolist(), offsets.tolist()) == ([3, 1, 2, 1, 2], [0, 1, 1, 3, 5])


@given(IDS, IDS, st.booleans())
def test_positions_are_those_of_a_search_by_hand(ids: list[str], among: list[str], chunked: bool) -> None:
    wanted = [among.index(one) if one in among else -1 for one in ids]
    if chunked:
        columns = [pa.chunked_array([each[:2], each[2:]], pa.string()) for each in (ids, among)]
        assert positions(*columns).tolist() == wanted
    found = positions(ids, among)
    assert (found.tolist(), found.dtype) == (wanted, np.int64)


def test_rows_come_in_the_order_of_the_ids_and_a_missing_one_is_an_error() -> None:
    table = pa.table({"item_id": ["a", "b", "c"], "value": [1, 2, 3]})
    assert rows_of(["c", "a", "c"], table, "values")["value"].to_pylist() == [3, 1, 3]
    with pytest.raises(ArtifactError, match=r"^2 items are missing in values\.$") as found:
        rows_of(["x", "a", "y"], table, "values")
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)  # noqa: S301 - our own bytes
    assert found.value.path == "values"


def test_rows_of_a_run_are_read_by_id(tmp_path) -> None:
    run = RunDir(str(tmp_path))
    run.write_table(pa.table({"value": [1, 2], "item_id": ["a", "b"], "other": [0, 0]}), "catalog", "items")
    found = read_rows(run, ["b", "a", "b"], "catalog", "items", columns=["value"])
    assert found.to_pydict() == {"item_id": ["b", "a", "b"], "value": [2, 1, 2]}
    with pytest.raises(ArtifactError, match="1 items are missing in catalog/items"):
        read_rows(run, ["c"], "catalog", "items", columns=["value"])


def test_a_block_is_read_in_place_or_by_id(tmp_path) -> None:
    run = RunDir(str(tmp_path))
    run.write_table(pa.table({"item_id": list("abcd"), "value": [1, 2, 3, 4]}), "sids")
    for start, ids in ((1, "bc"), (0, "bc"), (2, "dc"), (3, "d")):
        found = read_block(run, list(ids), start, "sids", columns=["value"])
        assert found["value"].to_pylist() == ["abcd".index(item) + 1 for item in ids]
    with pytest.raises(ArtifactError, match="1 items are missing in sids"):
        read_block(run, ["x"], 0, "sids", columns=["value"])
