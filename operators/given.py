"""Leave results as they are that a catalogue gives, and compute the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Operator, set_columns


@dataclass(frozen=True)
class Given(Operator):
    """An operator that is called for the rows alone whose result is not there yet.

    Attributes:
        operator: what is called.
        column: of its results, the one that a row may come with; the others are then NULL.
    """

    operator: Operator
    column: str

    @property
    def input_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the operator, and the result."""
        return (*self.operator.input_columns, self.column)

    @property
    def output_schema(self) -> pa.Schema:
        """The operator's columns."""
        return self.operator.output_schema

    def setup(self) -> None:
        self.operator.setup()

    def __call__(self, table: pa.Table) -> pa.Table:
        there = table[self.column].is_valid()
        known = table.filter(there)
        columns = {field.name: pa.nulls(known.num_rows, field.type) for field in self.output_schema}
        columns[self.column] = known[self.column].cast(self.output_schema.field(self.column).type)
        known = set_columns(known, columns)
        if known.num_rows == table.num_rows:
            return known
        found = self.operator(table.filter(pc.invert(there)))
        given = there.to_numpy(zero_copy_only=False)
        order = np.argsort(np.concatenate([np.flatnonzero(given), np.flatnonzero(~given)]))
        return pa.concat_tables([known, found.select(known.column_names)]).take(pa.array(order))
