"""The arms of `benchmarks.interpret`, each started as a process: python -m benchmarks.interpret_arms ARM CATALOG PLACE.

An arm writes its rows and `PLACE/marks.json`: moments (Unix seconds) and the rows done by then.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from operators.base import Operator, apply, with_outcome
from storage import files
from storage.run import RunDir
from workflows import cluster
from workflows.pools import READER_CPUS
from workflows.stage import Context
from workflows.stages import ingest, interpret

BATCH = 32
CORES = len(os.sched_getaffinity(0))
Marks = list[tuple[float, int]]


def main() -> None:
    """Run one arm."""
    arm, catalog, place = sys.argv[1:]
    arms = {"ray": ray, "loop_threads": loop_threads, "loop_processes": loop_processes, "daft": daft}
    marks = arms[arm](catalog, Path(place))
    (Path(place) / "marks.json").write_text(json.dumps(marks), encoding="utf-8")


def operators(catalog: str) -> list[Operator]:
    """What every arm calls, with the defaults of the stage."""
    return [step.operator for step in interpret.steps(interpret.Config(), catalog)]


def canonical(catalog: str, place: Path) -> Context:
    """The catalogue as `ingest` writes it."""
    nodes = cluster.nodes("local")
    context = Context(RunDir(str(place / "run")), catalog, 0, "benchmark", print, lambda done, total: None, nodes)
    ingest.run(ingest.Config(), context)
    return context


def ray(catalog: str, place: Path) -> Marks:
    """The stage, as `tesserec run` runs it."""
    context = canonical(catalog, place)
    with cluster.connected("local", CORES + READER_CPUS):
        interpret.run(interpret.Config(), context)
    marks, done = [], 0
    for mark in sorted((place / "run").glob("checkpoints/interpret/*/marks/*.parquet"), key=os.path.getmtime):
        done += pq.ParquetFile(mark).metadata.num_rows
        marks.append((mark.stat().st_mtime, done))
    return marks


def batches(table: pa.Table, part: int = 0, parts: int = 1) -> Iterator[pa.Table]:
    """Every `parts`-th batch of a table."""
    for start in range(part * BATCH, table.num_rows, parts * BATCH):
        yield table.slice(start, BATCH)


def loop(catalog: str, place: Path, part: int, parts: int) -> Marks:
    """A bare loop over a share of the batches."""
    torch.set_num_threads(CORES // parts)
    table = files.read_table(str(place / "run" / "catalog" / "items"))
    chain = operators(catalog)
    for operator in chain:
        operator.setup()
    marks, done, writer = [], 0, None
    for batch in batches(table, part, parts):
        out = with_outcome(batch)
        for operator in chain:
            out = apply(operator, out)
        out = out.select([*interpret.ITEMS.names, "issues", "outcome"])
        writer = writer or pq.ParquetWriter(place / f"rows-{part}.parquet", out.schema)
        writer.write_table(out)
        done += out.num_rows
        marks.append((time.time(), done))
    if writer:
        writer.close()
    return marks


def loop_threads(catalog: str, place: Path) -> Marks:
    """One process, a torch thread per core."""
    canonical(catalog, place)
    return loop(catalog, place, 0, 1)


def loop_processes(catalog: str, place: Path) -> Marks:
    """A process per core, one torch thread each."""
    canonical(catalog, place)
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        shares = pool.starmap(loop, [(catalog, place, part, CORES) for part in range(CORES)])
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
    """The same chain as a stateful Daft function with a process per core."""
    raise NotImplementedError


if __name__ == "__main__":
    main()
