"""Runs in the process of the test: streams and the rows of fits without Ray, beside `tests.workflows.local_fits`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from operators.base import apply, with_outcome
from storage import files
from tests.workflows.local_fits import local_fits

BATCH = 32


class Rows:
    """Stands for the Ray Data set of a Parquet folder."""

    def __init__(self, uri: str, columns: list[str] | None = None) -> None:
        self.uri, self.columns = uri, columns

    def repartition(self, **_: Any) -> Rows:
        return self


def stream_here(source: str, groups: Any, *, sink: str, columns: list[str], **_: Any) -> None:
    """What `workflows.distributed.streams.stream` comes to."""
    rows = with_outcome(files.read_table(source))
    steps = [step for group in groups for step in group.steps]
    for step in steps:
        step.operator.setup()
    parts = []
    for at in range(0, rows.num_rows, BATCH):
        part = rows.slice(at, BATCH)
        for step in steps:
            part = apply(step.operator, part)
        parts.append(part.select([*columns, "issues", "outcome"]))
    done = pa.concat_tables(parts)
    for outcome in ("kept", "rejected"):
        chosen = done.filter(pc.equal(done["outcome"], outcome)).drop_columns("outcome")
        files.write_table(files.join(sink, "rows", f"outcome={outcome}"), chosen)
    files.write_table(files.join(sink, "marks"), done.select(["item_id"]))


@contextmanager
def local_runs() -> Iterator[None]:
    """Let `workflows.engine.runner.execute` work in this process for the length of a block."""
    with local_fits(), pytest.MonkeyPatch.context() as patch:
        from workflows.distributed import cluster, streams, training
        from workflows.stages.quantize import fitting

        fit, held = training.fit, dict[str, Rows]()

        def fit_here(*arguments: Any, datasets: dict[str, Rows] | None = None, **settings: Any) -> Any:
            held.update(datasets or {})
            return fit(*arguments, **settings)

        def shard(name: str, batch_rows: int) -> Iterator[pa.Table]:
            yield files.read_table(held[name].uri, columns=held[name].columns)

        patch.setattr(cluster, "connected", lambda address, cpus: nullcontext())
        patch.setattr(streams, "stream", stream_here)
        patch.setattr(fitting, "parquet_rows", Rows)
        patch.setattr(training, "fit", fit_here)
        patch.setattr(training, "shard", shard)
        yield
