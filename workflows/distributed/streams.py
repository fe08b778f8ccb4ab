"""Streams of operators on Ray Data: resumable by row, every row with its outcome.

This recipe was measured; other ways lose rows. Blocks of `commit_rows` are cut right after the read, because a block is
the unit that commits. Kept and rejected rows go to one sink, because a second branch would compute everything twice. A
resumed stream appends, using Ray's row-level checkpoint, which is kept under the stage's fingerprint.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from operators.base import KEPT, REJECTED, REJECTS, Operator, apply, rejects_table, with_outcome
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from storage.sorting import write_in_hash_order
from workflows.distributed.polling import polled
from workflows.distributed.pools import Group

if TYPE_CHECKING:
    import ray.data

PENDING = ".pending.parquet"
TURN_S = 0.2
POLL_S = 2.0


class _Worker:
    """Applies operators in an actor and sets them up once. Ray bounds its threads by `num_cpus` (OMP_NUM_THREADS)."""

    def __init__(self, operators: Sequence[Operator], columns: list[str]) -> None:
        self._operators, self._columns = operators, columns
        for operator in operators:
            operator.setup()

    def __call__(self, table: pa.Table) -> pa.Table:
        if "outcome" not in table.column_names:
            table = with_outcome(table)
        for operator in self._operators:
            table = apply(operator, table)
        return table.select([name for name in table.column_names if name in self._columns])


class _Pace:
    """Slows down the scheduling loop of a stream, which would run ten times a second and take 7 % of a core.

    This costs no throughput: blocks take seconds, and every actor has the next one queued. Ray Data calls these methods
    by name.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(TURN_S)

    def before_execution_starts(self, executor: object) -> None: ...

    def after_execution_succeeds(self, executor: object) -> None: ...

    def after_execution_fails(self, executor: object, error: Exception) -> None: ...


def stream(
    source: str,
    groups: Sequence[Group],
    *,
    sink: str,
    columns: list[str],
    commit_rows: int,
    no_progress_timeout_s: float,
    on_rows: Callable[[int], None],
) -> None:
    """Applies operators to the rows of a Parquet folder with unique `item_id` and writes them to `sink`/rows.

    Rows that an earlier attempt committed under `sink` are not computed again.

    Args:
        source: URI of the Parquet folder.
        groups: operators in order, in their pools.
        sink: URI of the stream's own folder: `rows/outcome=kept|rejected/` and `marks/`.
        columns: columns to write, beside `outcome` and `issues`.
        commit_rows: rows per block; a block in flight is lost when the run is killed.
        no_progress_timeout_s: seconds without a committed row, the loading of models included, that end the stream.
        on_rows: called every few seconds with the number of committed rows.

    Raises:
        UserError: the settings of an operator cannot work, or the stream made no progress.
    """
    import ray.data
    import ray.data.exceptions
    import ray.exceptions
    from ray.data import SaveMode
    from ray.data.checkpoint import CheckpointConfig

    context = _settings()  # applies to the marks of a resumed stream, too, which Ray reads
    fs, path = files.filesystem(sink)
    arrow = _arrow_filesystem(fs)
    context.checkpoint_config = CheckpointConfig(
        id_column="item_id",
        checkpoint_path=files.join(path, "marks"),
        delete_checkpoint_on_success=False,
        override_filesystem=arrow,
    )
    context.execution_no_progress_timeout_s = no_progress_timeout_s
    context.raise_original_map_exception = True  # keeps an operator's UserError as the cause
    context.custom_execution_callback_classes = [_Pace]  # type: ignore[list-item]
    target = files.join(path, "rows")
    known: dict[str, int] = {}
    _settle(sink)
    with ray.data.DataContext.current(context), polled(lambda: on_rows(committed_rows(sink, known)), POLL_S):
        rows = parquet_rows(source).repartition(target_num_rows_per_block=commit_rows)
        written = [*columns, "issues", "outcome"]
        for position, group in enumerate(groups):
            later = [step.operator for after in groups[position + 1 :] for step in after.steps]
            needed = {*written, *(name for operator in later for name in operator.input_columns)}
            rows = rows.map_batches(
                _Worker,
                fn_constructor_args=([step.operator for step in group.steps], sorted(needed)),
                batch_format="pyarrow",
                batch_size=group.pool.batch_size,
                compute=ray.data.ActorPoolStrategy(
                    min_size=group.pool.min,
                    max_size=group.pool.largest,
                    max_tasks_in_flight_per_actor=group.pool.max_in_flight,
                ),
                num_cpus=group.pool.num_cpus,
                num_gpus=group.pool.num_gpus or None,
                label_selector=group.pool.labels or None,
            )
        rows = rows.select_columns(written)
        try:
            rows.write_parquet(target, filesystem=arrow, partition_cols=["outcome"], mode=SaveMode.APPEND)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause).partition("\n")[0]) from error  # Ray adds notes on retries
            raise
        except ray.data.exceptions.ExecutionTimeoutError as error:
            raise UserError(
                f"No rows were finished for {no_progress_timeout_s:g} s: check the models and endpoints, lower "
                "batch_size, or raise no_progress_timeout_s of the stage; the same command then resumes."
            ) from error


def _settle(sink: str) -> None:
    """Removes the pending marks of blocks that are committed.

    In an object store the renaming of a mark is a copy and a removal. Of a block whose writer was killed between them
    Ray would remove the rows, and keep the mark that says they are there.
    """
    fs, path = files.filesystem(files.join(sink, "marks"))
    marks = set(fs.glob(f"{path}/*.parquet"))
    for mark in marks:
        if mark.endswith(PENDING) and f"{mark.removesuffix(PENDING)}.parquet" in marks:
            fs.rm_file(mark)


def committed_rows(sink: str, known: dict[str, int] | None = None) -> int:
    """Counts the rows committed under `sink`; `known` caches the counts of files between calls.

    Ray first marks a block as pending and renames the mark once the rows are written.
    """
    fs, path = files.filesystem(files.join(sink, "marks"))
    counts = {} if known is None else known
    marks = [name for name in fs.glob(f"{path}/*.parquet") if not name.endswith(PENDING)]
    for name in marks:
        if name not in counts:
            try:
                with fs.open(name, "rb") as stream_:
                    counts[name] = pq.ParquetFile(stream_).metadata.num_rows
            except (OSError, pa.ArrowInvalid):  # still being written, or removed by a retry
                continue
    return sum(counts.get(name, 0) for name in marks)


def outcome_batches(sink: str, outcome: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields the committed rows of one outcome in batches."""
    uri = files.join(sink, "rows", f"outcome={outcome}")
    if files.exists(uri):
        yield from files.dataset(uri).to_batches(columns=columns)


def write_rejects(sink: str, run: RunDir, stage: str, total: int) -> tuple[int, int, dict[str, int]]:
    """Writes `rejects/STAGE` of a stream of so many rows, in the order of their ids' hash.

    Returns:
        Rejected rows, degraded rows, and the number of issues by code.
    """
    rows, codes = dict.fromkeys((KEPT, REJECTED), 0), Counter[str]()

    def issues() -> Iterator[pa.RecordBatch]:
        for outcome in rows:
            for batch in outcome_batches(sink, outcome, ["item_id", "issues"]):
                failed = pl.DataFrame(batch).filter(pl.col("issues").list.len() > 0)
                rows[outcome] += batch.num_rows if outcome == REJECTED else failed.height
                found = failed.explode("issues").unnest("issues").sort("code")
                codes.update(found["code"])
                yield from rejects_table(found, stage=stage).to_batches()

    write_in_hash_order(issues(), run.uri("rejects", stage), total, REJECTS)
    return rows[REJECTED], rows[KEPT], dict(sorted(codes.items()))


def parquet_rows(uri: str, columns: list[str] | None = None) -> ray.data.Dataset:
    """Returns the rows of a Parquet folder; requires a running Ray, which reads a sample at once."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well
    fs, path = files.filesystem(uri)
    with ray.data.DataContext.current(_settings()):
        return ray.data.read_parquet(path, filesystem=_arrow_filesystem(fs), columns=columns)


def _settings() -> ray.data.DataContext:
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.use_datasource_v2 = False  # would start 32 actors to read footers, which costs more than the whole read
    context.enable_progress_bars = False
    return context


def _arrow_filesystem(fs: object) -> pyarrow.fs.FileSystem:
    """Wraps an fsspec filesystem for Ray Data."""
    if getattr(fs, "protocol", None) in ("file", ("file", "local")):
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
