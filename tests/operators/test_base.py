from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.base import Operator, apply, set_columns, with_outcome
from storage.errors import UserError


@dataclass(frozen=True)
class Halve(Operator):
    """Fails on any batch that holds an odd number."""

    input_columns: ClassVar[tuple[str, ...]] = ("x",)

    @property
    def output_schema(self) -> pa.Schema:
        return pa.schema([("half", pa.int64())])

    def __call__(self, table: pa.Table) -> pa.Table:
        values = table["x"].to_pylist()
        if any(value % 2 for value in values):
            raise ValueError("odd")
        return set_columns(table, {"half": pa.array([value // 2 for value in values], pa.int64())})


@given(st.lists(st.integers(0, 1000), max_size=30))
def test_a_bad_row_costs_itself_alone(values):
    table = with_outcome(pa.table({"x": pa.array(values, pa.int64())}))
    out = apply(Halve(), table).to_pydict()

    assert sorted(out["x"]) == sorted(values)
    for x, half, outcome, issues in zip(out["x"], out["half"], out["outcome"], out["issues"], strict=True):
        if x % 2:
            assert (half, outcome) == (None, "rejected")
            assert [issue["code"] for issue in issues] == ["operator_error"]
            assert "odd" in issues[0]["detail"]
        else:
            assert (half, outcome, issues) == (x // 2, "kept", [])


def test_rejected_rows_pass_untouched():
    once = apply(Halve(), with_outcome(pa.table({"x": [1, 2]})))
    twice = apply(Halve(), once)
    assert sorted(twice["outcome"].to_pylist()) == ["kept", "rejected"]
    assert [len(issues) for issues in twice["issues"].to_pylist()] == [0, 1]


def test_settings_that_cannot_work_are_not_the_rows_fault():
    class Misconfigured(Halve):
        def __call__(self, table: pa.Table) -> pa.Table:
            raise UserError("There is no such model.")

    with pytest.raises(UserError, match="no such model"):
        apply(Misconfigured(), with_outcome(pa.table({"x": [1, 2]})))


def test_running_out_of_memory_is_not_the_rows_fault():
    class Greedy(Halve):
        def __call__(self, table: pa.Table) -> pa.Table:
            raise MemoryError

    with pytest.raises(MemoryError):
        apply(Greedy(), with_outcome(pa.table({"x": [1]})))
