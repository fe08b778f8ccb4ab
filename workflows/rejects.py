"""The rejects table: every row that was rejected or kept without a part, with the stage and the reason."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

SCHEMA = pa.schema([(name, pa.string()) for name in ("item_id", "stage", "severity", "code", "detail")])


def rejects_table(rejects: pl.DataFrame, *, stage: str) -> pa.Table:
    """Rows (item_id, severity, code, detail) as a rejects table of a stage."""
    return (
        rejects.with_columns(stage=pl.lit(stage))
        .select(SCHEMA.names)
        .to_arrow(compat_level=pl.CompatLevel.oldest())
        .cast(SCHEMA)
    )
