"""A cluster of four nodes with labels and a logical GPU: what runs where, and a fit that loses a node.

`python -m tests.workflows.distributed.placement FOLDER` writes FOLDER/found.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
import ray
import ray.train
import torch
from ray.cluster_utils import Cluster

from operators.base import Operator
from storage.run import RunDir
from workflows.distributed import cluster, training
from workflows.distributed.pools import Group, Pool, Step, Workers
from workflows.distributed.streams import stream

ROWS, STEPS = 48, 8
STORE = 100 << 20  # bytes


@dataclass(frozen=True)
class Where(Operator):
    """Tells the node, the process and the GPUs that a row was worked on."""

    column: str
    input_columns: ClassVar[tuple[str, ...]] = ("item_id",)

    @property
    def output_schema(self) -> pa.Schema:
        return pa.schema([(self.column, pa.string())])

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(0.05)  # so that no actor is done before another one is there
        context = ray.get_runtime_context()
        told = f"{context.get_node_id()} {os.getpid()} {','.join(context.get_accelerator_ids()['GPU'])}"
        return table.append_column(self.column, pa.array([told] * table.num_rows, pa.string()))


def steps(config: dict[str, Any]) -> None:
    state = training.restored(training.load_tensors)
    first = 0 if state is None else int(state["step"])
    workers = ray.train.get_context().get_world_size()
    for step in range(first + 1, STEPS + 1):
        time.sleep(0.2)
        save = partial(training.save_tensors, lambda step=step: {"step": torch.tensor(step)})
        node = ray.get_runtime_context().get_node_id()
        training.report({"step": step, "first": first, "workers": workers, "node": node}, save, every_s=0.0)


def main(folder: Path) -> None:
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"  # it waits as long for the lost node once more
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": STORE})
    gpu = nodes.add_node(num_cpus=2, num_gpus=1, labels={"tier": "gpu"}, object_store_memory=STORE)
    fit = [nodes.add_node(num_cpus=1, labels={"tier": "fit"}, object_store_memory=STORE) for _ in range(2)]
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    labels = [dict(node.labels).get("tier") for node in cluster.nodes(nodes.address)]
    source = folder / "source"
    source.mkdir()
    pl.DataFrame({"item_id": [f"item {row}" for row in range(ROWS)]}).write_parquet(source / "0.parquet")
    look = Pool(min=2, num_cpus=0.5, num_gpus=0.5, batch_size=4, labels={"tier": "gpu"})
    read = Pool(min=1, num_cpus=0.5, batch_size=4, labels={"tier": "fit"})
    stream(
        str(source),
        [Group((Step("look", Where("look")),), look), Group((Step("read", Where("read")),), read)],
        sink=str(folder / "sink"),
        columns=["item_id", "look", "read"],
        commit_rows=4,
        no_progress_timeout_s=120,
        on_rows=lambda done: None,
    )
    found = pl.read_parquet(folder / "sink" / "rows" / "**" / "*.parquet")
    lost: list[int] = []

    def lose(metrics: dict[str, Any]) -> None:
        if not lost and metrics["step"] >= 3:
            lost.append(metrics["step"])
            nodes.remove_node(gpu, allow_graceful=False)

    run = RunDir(str(folder / "run"))
    there = training.fit(steps, {"seed": 0}, workers=Workers(1, labels={"tier": "fit"}), run=run, name="steps/f1")
    reports = training.fit(
        steps,
        {"seed": 0},
        workers=Workers(2, cpus=2, least=1),  # the head and the node with the GPU have room for one each
        run=run,
        name="steps/f2",
        progress=lose,
    )
    told = {
        "labels": labels,
        "gpu": gpu.node_id,
        "fit": [node.node_id for node in fit],
        "rows": found.select("item_id", "look", "read").rows(),
        "there": there[-1]["node"],
        "reports": reports,
    }
    (folder / "found.json").write_text(json.dumps(told))
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
