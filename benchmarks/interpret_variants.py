"""The variants of `benchmarks.interpret`, one per process.

    python -m benchmarks.interpret_variants VARIANT CATALOG PLACE

A variant writes its rows and `PLACE/marks.json`: times (Unix seconds) and the rows done by then.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from operators.base import Operator, apply, with_outcome
from storage import files
from storage.run import RunDir
from workflows.distributed import cluster
from workflows.distributed.pools import READER_CPUS
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ingest import stage as ingest
from workflows.stages.interpret import stage as interpret

BATCH = 32
CORES = len(os.sched_getaffinity(0))
Marks = list[tuple[float, int]]


def main() -> None:
    """Runs one variant."""
    variant, catalog, place = sys.argv[1:]
    uncached = functools.partial(ray, cache=False)
    variants: dict[str, Callable[[str, Path], Marks]] = {"ray": ray, "ray_uncached": uncached, "daft": daft}
    variants |= {"loop_threads": loop_threads, "loop_processes": loop_processes}
    marks = variants[variant](catalog, Path(place))
    (Path(place) / "marks.json").write_text(json.dumps(marks), encoding="utf-8")


def operators(catalog: str, place: Path) -> list[Operator]:
    """Returns the operators that every variant calls, with the stage's defaults and an empty cache."""
    return [step.operator for step in interpret.steps(interpret.Config(), catalog, str(place / "cache"))]


def columns() -> list[str]:
    """Returns the columns that every variant writes."""
    return [*interpret.items_schema(interpret.Config()).names, "work", "issues", "outcome"]


def canonical(catalog: str, place: Path) -> Context:
    """Writes the catalogue as `ingest` does."""
    nodes = cluster.nodes("local")
    context = Context(RunDir(str(place / "run")), catalog, 0, "benchmark", print, lambda done, total: None, nodes)
    stage("ingest").run(ingest.Config(), context)
    return context


def source(catalog: str, place: Path) -> str:
    """Writes the rows that the stream of the stage reads and returns their URI."""
    target = str(place / "source")
    interpret.write_source(interpret.Config(), canonical(catalog, place), target)
    return target


def ray(catalog: str, place: Path, *, cache: bool = True) -> Marks:
    """Runs the stage as `tesserec run` does."""
    context = canonical(catalog, place)
    with cluster.connected("local", CORES + READER_CPUS):
        stage("interpret").run(interpret.Config(cache=cache), context)
    marks, done = [], 0
    for mark in sorted((place / "run").glob("checkpoints/interpret/*/marks/*.parquet"), key=os.path.getmtime):
        done += pq.ParquetFile(mark).metadata.num_rows
        marks.append((mark.stat().st_mtime, done))
    return marks


def batches(table: pa.Table, part: int = 0, parts: int = 1) -> Iterator[pa.Table]:
    """Yields every `parts`-th batch of a table."""
    for start in range(part * BATCH, table.num_rows, parts * BATCH):
        yield table.slice(start, BATCH)


def loop(catalog: str, place: Path, part: int, parts: int) -> Marks:
    """Runs a bare loop over a share of the batches."""
    torch.set_num_threads(CORES // parts)
    table = files.read_table(str(place / "source"))
    chain = operators(catalog, place)
    for operator in chain:
        operator.setup()
    marks, done, writer = [], 0, None
    for batch in batches(table, part, parts):
        out = call(chain, batch)
        writer = writer or pq.ParquetWriter(place / f"rows-{part}.parquet", out.schema)
        writer.write_table(out)
        done += out.num_rows
        marks.append((time.time(), done))
    if writer:
        writer.close()
    return marks


def call(chain: list[Operator], batch: pa.Table) -> pa.Table:
    """Applies all operators to one batch."""
    out = with_outcome(batch)
    for operator in chain:
        out = apply(operator, out)
    return out.select(columns())


def loop_threads(catalog: str, place: Path) -> Marks:
    """Runs the loop in one process, with a torch thread per core."""
    source(catalog, place)
    return loop(catalog, place, 0, 1)


def loop_processes(catalog: str, place: Path) -> Marks:
    """Runs the loop in a process per core, with one torch thread per process."""
    source(catalog, place)
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        return merged(pool.starmap(loop, [(catalog, place, part, CORES) for part in range(CORES)]))


def merged(shares: list[Marks]) -> Marks:
    """Merges the marks of several processes into those of one."""
    steps = sorted((moment, rows - before) for share in shares for (moment, rows), before in _with_before(share))
    marks, done = [], 0
    for moment, rows in steps:
        done += rows
        marks.append((moment, done))
    return marks


def _with_before(share: Marks) -> Iterator[tuple[tuple[float, int], int]]:
    before = 0
    for mark in share:
        yield mark, before
        before = mark[1]


def daft(catalog: str, place: Path) -> Marks:
    """Runs the same operators in a class of Daft, in a process per core with one torch thread per process."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets for actors of one CPU
    import daft as df

    rows = df.read_parquet(f"{source(catalog, place)}/*.parquet")
    names = rows.column_names
    sample = call(operators(catalog, place / "sample"), files.read_table(str(place / "source")).slice(0, 1))
    kind = df.DataType.from_arrow_type(pa.struct(sample.schema))

    @df.cls(max_concurrency=CORES, use_process=True)
    class Chain:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.chain = operators(catalog, place)
            for operator in self.chain:
                operator.setup()

        @df.method.batch(return_dtype=kind, batch_size=BATCH)
        def interpret(self, *series: df.Series) -> pa.Array:
            table = pa.table({name: one.to_arrow() for name, one in zip(names, series, strict=True)})
            out = call(self.chain, table.cast(schema_of(table)))
            with (place / f"marks-{os.getpid()}").open("a") as marks:
                marks.write(f"{time.time()} {out.num_rows}\n")
            return out.to_struct_array().combine_chunks()

    rows.select(Chain().interpret(*(df.col(name) for name in names)).alias("row")).write_parquet(str(place / "rows"))
    shares = []
    for file in place.glob("marks-*"):
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        counts = [int(rows) for _, rows in lines]
        shares.append([(float(moment), sum(counts[: i + 1])) for i, (moment, _) in enumerate(lines)])
    return merged(shares)


def schema_of(table: pa.Table) -> pa.Schema:
    """Returns the schema with plain types in place of Daft's large ones."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_large_string(kind):
            return pa.string()
        if pa.types.is_map(kind):
            return pa.map_(plain(kind.key_type), plain(kind.item_type))
        if pa.types.is_large_list(kind) or pa.types.is_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([(field.name, plain(field.type)) for field in kind])
        return kind

    return pa.schema([(field.name, plain(field.type)) for field in table.schema])


if __name__ == "__main__":
    main()
