"""Fit of a quantizer on Ray Train: every worker reads its share of the embeddings through Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.semantic_ids.quantizer import RQKMEANS, Architecture
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.rqvae import Schedule, fit_rqvae
from models.semantic_ids.training_rows import collect
from operators.columns import matrix_of, positions
from storage import files
from storage.run import RunDir
from workflows.distributed import training
from workflows.distributed.streams import parquet_rows
from workflows.engine.stage import Context

BATCH_ROWS = 8_192


def fit(
    context: Context,
    architecture: Architecture,
    schedule: Schedule,
    *,
    share: float,
    balanced: bool,
    signals: pa.Table | None,
    workers: int,
    cpus_per_worker: float,
    use_gpu: bool,
    checkpoint_s: float,
) -> list[dict[str, Any]]:
    """Fit on the run's embeddings and write `models/quantizer`.

    Args:
        share: of the rows that the workers hold.
        balanced: see `models.semantic_ids.rqkmeans`.
        signals: item_id and vector, what an alignment goes by.
        checkpoint_s: seconds between two states that are kept.

    Returns:
        What rank 0 reported: the curve of the fit.
    """
    run, name = context.run, f"quantize/{context.fingerprint}"
    signals_uri = None
    if signals is not None:
        signals_uri = run.uri("checkpoints", "quantize", "signals")
        files.write_table(signals_uri, signals)
    rows = parquet_rows(run.uri("embeddings"), columns=["item_id", "embedding"])
    total = schedule.steps if architecture.method != RQKMEANS else len(architecture.codebook_sizes)
    return training.fit(
        train,
        {
            "run": run.root,
            "seed": context.seed,
            "architecture": asdict(architecture),
            "schedule": asdict(schedule),
            "share": share,
            "balanced": balanced,
            "signals": signals_uri,
            "checkpoint_s": checkpoint_s,
        },
        workers=workers,
        run=run,
        name=name,
        progress=lambda metrics: context.progress(int(metrics["step"]), total),
        cpus_per_worker=cpus_per_worker,
        use_gpu=use_gpu,
        datasets={"embeddings": rows.repartition(target_num_rows_per_block=BATCH_ROWS)},
    ).history


def train(config: dict[str, Any]) -> None:
    """The fit on one worker, over its share of the rows; rank 0 writes the artifact."""
    architecture, schedule = Architecture(**config["architecture"]), Schedule(**config["schedule"])
    signals = None if config["signals"] is None else files.read_table(config["signals"])
    rows = training.shard("embeddings", BATCH_ROWS)
    batches = with_signals(rows, architecture.input_dim, signals)
    vectors = collect(batches, share=config["share"], seed=config["seed"]).to(training.device())
    state = training.restored(training.load_tensors)

    def report(metrics: dict[str, float], snapshot: Callable[[], dict[str, torch.Tensor]]) -> None:
        training.report(metrics, partial(training.save_tensors, snapshot), every_s=config["checkpoint_s"])

    if architecture.method == RQKMEANS:
        quantizer = fit_rqkmeans(
            vectors, architecture, seed=config["seed"], balanced=config["balanced"], report=report, state=state
        )
    else:
        quantizer = fit_rqvae(vectors, architecture, schedule, seed=config["seed"], report=report, state=state)
    if training.is_first():
        quantizer.save(RunDir(config["run"]).uri("models", "quantizer"))


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
