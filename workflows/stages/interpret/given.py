"""Items that come with their captions, interests or vectors: what is left to compute, and copying where nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from operators.base import REJECTED, rejects_table, set_columns
from storage import files
from storage.run import RunDir
from storage.sorting import write_in_hash_order
from workflows.catalogs.canonical import GIVEN

BATCH_ROWS = 8_192
TAGS = pa.list_(pa.string())
NO_VECTOR = pa.list_(pa.float32(), 1)  # of a column without any
TYPES = {
    "caption": pa.string(),
    "interests": TAGS,
    "interest_kinds": TAGS,
    "image_vector": NO_VECTOR,
    "text_vector": NO_VECTOR,
}


def given_fields(items: pa.Schema) -> dict[str, pa.Field]:
    """Returns the columns of an items table that take the place of a model."""
    return {name: items.field(name) for name in GIVEN if name in items.names}


def nothing_to_compute(run: RunDir) -> bool:
    """Tells whether a run's items have an embedding, which all of them then have, or everything one is made of."""
    items = files.dataset(run.uri("catalog", "items"))
    given = set(given_fields(items.schema))
    if given != set(GIVEN) - {"embedding"}:
        return "embedding" in given
    return not items.count_rows(filter=ds.field("caption").is_null() | ds.field("interests").is_null())


def copy_items(run: RunDir, schema: pa.Schema, _: str = "") -> tuple[int, int, int]:
    """Writes `items` and `rejects/interpret` without a model: what the catalogue gives, and NULL for the rest.

    Returns:
        The rows of the catalogue, those that are kept, and those that are rejected, since they have neither a text nor
        a vector.
    """
    uri, rejected = run.uri("catalog", "items"), list[str]()
    source = files.dataset(uri)
    said = ["title", "description", *given_fields(source.schema)]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in files.batches(uri, [name for name in schema.names if name in source.schema.names], BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            absent = [field for field in schema if field.name not in table.column_names]
            table = set_columns(table, {field.name: pa.nulls(table.num_rows, field.type) for field in absent})
            something = reduce(pc.or_, (table[name].is_valid() for name in said))
            rejected.extend(table["item_id"].filter(pc.invert(something)).to_pylist())
            yield from table.filter(something).to_batches()

    total = source.count_rows()
    kept = write_in_hash_order(batches(), run.uri("items"), total, schema)
    issues = pl.DataFrame({"item_id": pl.Series(sorted(rejected), dtype=pl.String)}).with_columns(
        severity=pl.lit(REJECTED), code=pl.lit("nothing_to_interpret"), detail=pl.lit("no text and no given vector")
    )
    run.write_table(rejects_table(issues, stage="interpret"), "rejects", "interpret")
    return total, kept, len(rejected)
