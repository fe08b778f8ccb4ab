"""Fit of a quantizer on Ray Train: every worker reads its share of the embeddings through Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.semantic_ids.quantizer import RQKMEANS
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.rqvae import fit_rqvae
from models.semantic_ids.training_rows import collect
from operators.columns import matrix_of, positions
from operators.log.collaborative import collaborative_vectors
from storage import files
from storage.run import RunDir
from workflows.distributed import training
from workflows.distributed.streams import parquet_rows
from workflows.engine.stage import Context
from workflows.stages.quantize.settings import COLLABORATIVE, Config
from workflows.stages.quantize.trained_vectors import write_trained_vectors

BATCH_ROWS = 8_192


def fit(config: Config, context: Context) -> list[dict[str, Any]]:
    """Fits on the run's embeddings and writes `models/quantizer`; returns the curve of the fit."""
    run, signals = context.run, None
    if config.method == COLLABORATIVE:
        signals = run.uri("checkpoints", "quantize", context.fingerprint, "signals")
        if config.collaborative.source == "sasrec":
            write_trained_vectors(config.collaborative, context, signals)
        else:
            width = config.collaborative.width
            files.write_table(signals, collaborative_vectors(run, context.split, width=width, seed=context.seed))
    items = files.dataset(run.uri("embeddings")).count_rows()
    rows = parquet_rows(run.uri("embeddings"), columns=["item_id", "embedding"])
    total = len(config.sizes(items)) if config.method == RQKMEANS else config.steps
    return training.fit(
        train,
        {
            "run": run.root,
            "seed": context.seed,
            "settings": config.model_dump(mode="json"),
            "share": min(1.0, config.fit_rows / items),
            "signals": signals,
        },
        workers=config.processes,
        run=run,
        name=f"quantize/{context.fingerprint}",
        progress=lambda metrics: context.progress(int(metrics["step"]), total),
        datasets={"embeddings": rows.repartition(target_num_rows_per_block=BATCH_ROWS)},
    )


def train(task: dict[str, Any]) -> None:
    """The fit on one worker, over its share of the rows; rank 0 writes the artifact."""
    config, run = Config.model_validate(task["settings"]), RunDir(task["run"])
    embeddings = files.dataset(run.uri("embeddings"))
    architecture = config.architecture(embeddings.schema.field("embedding").type.list_size, embeddings.count_rows())
    signals = None if task["signals"] is None else files.read_table(task["signals"])
    batches = with_signals(training.shard("embeddings", BATCH_ROWS), architecture.input_dim, signals)
    vectors = collect(batches, share=task["share"], seed=task["seed"]).to(training.device())

    def report(metrics: dict[str, float], snapshot: Callable[[], dict[str, torch.Tensor]]) -> None:
        training.report(metrics, partial(training.save_tensors, snapshot), every_s=config.checkpoint_s)

    resumed: Any = {"seed": task["seed"], "report": report, "state": training.restored(training.load_tensors)}
    if config.method == RQKMEANS:
        quantizer = fit_rqkmeans(vectors, architecture, balanced=config.balanced, **resumed)
    else:
        quantizer = fit_rqvae(vectors, architecture, config.schedule(), **resumed)
    if training.is_first():
        quantizer.save(run.uri("models", "quantizer"))


def with_signals(
    batches: Iterable[pa.Table], width: int, signals: pa.Table | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embeddings of each batch, and beside them the vectors that `signals` has of their items, NaN where it has none.

    An empty batch comes first, for a worker that gets no row.
    """
    known = np.empty((0, 0), np.float32) if signals is None else matrix_of(signals["vector"])
    yield np.empty((0, width), np.float32), np.empty((0, known.shape[1]), np.float32)
    for batch in batches:
        beside = np.full((batch.num_rows, known.shape[1]), np.nan, np.float32)
        if signals is not None:
            at = positions(batch["item_id"], signals["item_id"])
            beside[at >= 0] = known[at[at >= 0]]
        yield matrix_of(batch["embedding"]), beside
