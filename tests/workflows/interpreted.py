"""What interpret has to come to, without Ray."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from operators.base import KEPT, apply, with_outcome
from workflows.distributed.pools import Pool
from workflows.engine.stage import Context
from workflows.stages.interpret import stage as interpret


def interpreted_here(context: Context) -> pa.Table:
    """What the operators, called one after the other in this process, keep of an ingested run's items; by item_id."""
    interpret.write_source(interpret.Config(), context, context.run.uri("source"))
    table = with_outcome(context.run.read_table("source"))
    for step in interpret.steps(interpret.Config(), context.catalog, None):
        step.operator.setup()
        starts = range(0, len(table), Pool().batch_size)  # pictures of all items at once would need gigabytes
        table = pa.concat_tables([apply(step.operator, table.slice(at, Pool().batch_size)) for at in starts])
    return table.filter(pc.equal(table["outcome"], KEPT)).sort_by("item_id")
