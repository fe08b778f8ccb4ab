"""An operator of one's own, applied to a table without Ray: one bad row costs itself alone.

python examples/custom_operator.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Operator, apply, set_columns, with_outcome


@dataclass(frozen=True)
class Price(Operator):
    """Read a price such as "12.50 EUR" into a number and a currency.

    Attributes:
        default_currency: of prices that name none.
    """

    default_currency: str = "EUR"

    version: ClassVar[int] = 1
    input_columns: ClassVar[tuple[str, ...]] = ("price",)

    @property
    def output_schema(self) -> pa.Schema:
        """Names and types of the columns that are added."""
        return pa.schema([("amount", pa.float64()), ("currency", pa.string())])

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the columns to a table, rows in the same order."""
        parts = pc.split_pattern_regex(pc.utf8_trim_whitespace(table["price"]), r"\s+", max_splits=1)
        padded = [(*row, self.default_currency)[:2] for row in parts.to_pylist()]
        amounts = pa.array([float(amount) for amount, _ in padded], pa.float64())
        return set_columns(table, {"amount": amounts, "currency": pa.array([currency for _, currency in padded])})


def main() -> pa.Table:
    """Apply the operator to four rows, one of which cannot be read."""
    items = pa.table({"item_id": ["a", "b", "c", "d"], "price": ["12.50 EUR", "9", "ask us", "7.25 USD"]})
    done = apply(Price(), with_outcome(items))
    print(done.select(["item_id", "amount", "currency", "outcome"]).to_pandas().to_string(index=False))
    print("why:", [issue["detail"] for issues in done["issues"].to_pylist() for issue in issues])
    return done


if __name__ == "__main__":
    main()
