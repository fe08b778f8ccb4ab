"""Measures how the stream scales with nodes, by an operator that sleeps as long as a slow model computes.

python -m benchmarks.scale_out [--nodes 1 2 4] [--rows 96] [--seconds 1] [--out FILE]

For each number of nodes a Ray cluster of its own (processes of this machine) has a head, which reads and writes, and
that many nodes with one CPU each. One actor per node works on batches of four rows and sleeps `--seconds` for each row.
An actor counts from the end of its first batch to the end of the last batch of all, so that the start of actors is left
out and their end is not. Sleeping takes no core: what is measured is how Ray Data and the commits keep actors busy, and
not the machine.

    rows_per_s    by number of nodes
    of_linear     rate over nodes times the rate of one node
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from benchmarks.machine import machine
from operators.base import Operator
from workflows.distributed.pools import Group, Pool, Step
from workflows.distributed.streams import stream

BATCH = 4
STORE = 100 << 20  # bytes of a node's object store


@dataclass(frozen=True)
class Slow(Operator):
    """Sleeps for every row, and tells which actor had done it when."""

    seconds: float
    input_columns: ClassVar[tuple[str, ...]] = ("item_id",)

    @property
    def output_schema(self) -> pa.Schema:
        """Returns the columns that it adds."""
        return pa.schema([("actor", pa.string()), ("done", pa.float64())])

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns a batch with its actor and the moment at which it was done, in seconds."""
        time.sleep(self.seconds * table.num_rows)
        actor, rows = ray.get_runtime_context().get_actor_id(), table.num_rows
        return table.append_column("actor", pa.array([actor] * rows, pa.string())).append_column(
            "done", pa.array([time.time()] * rows)
        )


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=96, help="for each node")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a row takes")
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    given = parser.parse_args()
    rates = {nodes: rate(nodes, given.rows * nodes, given.seconds) for nodes in given.nodes}
    one = rates[given.nodes[0]] / given.nodes[0]
    linear = {nodes: found / (nodes * one) for nodes, found in rates.items()}
    text = json.dumps({**machine(), "rows_per_s": rates, "of_linear": linear}, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def rate(nodes: int, rows: int, seconds: float) -> float:
    """Returns rows per second on a cluster of that many nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": STORE})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, labels={"tier": "slow"}, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "source")
            source.mkdir()
            pl.DataFrame({"item_id": [f"item {row}" for row in range(rows)]}).write_parquet(source / "0.parquet")
            pool = Pool(min=nodes, max=nodes, num_cpus=1, batch_size=BATCH, labels={"tier": "slow"})
            settings: dict[str, Any] = {"commit_rows": 4 * BATCH, "no_progress_timeout_s": 120}
            stream(
                str(source),
                [Group((Step("slow", Slow(seconds)),), pool)],
                sink=str(Path(folder, "sink")),
                columns=["item_id", "actor", "done"],
                on_rows=lambda done: None,
                **settings,
            )
            done = pl.read_parquet(Path(folder, "sink") / "rows" / "**" / "*.parquet")
    finally:
        ray.shutdown()
        cluster.shutdown()
    if len(done) != rows:
        raise RuntimeError(f"{len(done)} of {rows} rows came through")
    if (actors := done["actor"].n_unique()) != nodes:
        raise RuntimeError(f"{actors} actors worked on {nodes} nodes")
    later = pl.col("done") > pl.col("done").min()
    end = done["done"].max()
    rates = done.group_by("actor").agg(later.sum() / (end - pl.col("done").min()))
    return float(rates["done"].sum())


if __name__ == "__main__":
    main()
