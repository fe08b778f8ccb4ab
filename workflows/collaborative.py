"""What users chose, as item vectors: from the part of the log that no split holds out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from models.collaborative import item_vectors
from operators.embed import vector_array
from storage import files
from storage.errors import UserError
from storage.run import RunDir

HELD_OUT = 2  # events of every user that a split by last event keeps for validation and test


def collaborative_vectors(run: RunDir, *, width: int, log_share: float, seed: int) -> pa.Table:
    """Vectors (item_id, vector) of the items of a run's log.

    Args:
        width: of the vectors.
        log_share: first share of the log, by time, that counts; without every user's last two events.
        seed: of the factorisation.

    Raises:
        UserError: there is no log, or nothing is left of it.
    """
    if not files.exists(run.uri("catalog", "interactions")):
        raise UserError("Method rqvae+collaborative needs interactions: choose rqvae, or give the catalogue a log.")
    log = pl.from_arrow(run.read_table("catalog", "interactions"))
    assert isinstance(log, pl.DataFrame)  # noqa: S101 - for the type checker
    time = pl.col("timestamp").dt.epoch("us")
    kept = log.filter(
        time <= time.quantile(log_share, "lower"), time.rank("ordinal", descending=True).over("user_id") > HELD_OUT
    )
    if "label" in kept.columns:
        kept = kept.filter(pl.col("label").fill_null(1) > 0)
    if kept.is_empty():
        raise UserError("No event is left to align with: raise stages.quantize.collaborative.log_share.")
    kept = kept.select(pl.col("user_id").rank("dense") - 1, "item_id").sort("user_id", "item_id")
    items, numbers = np.unique(kept["item_id"].to_numpy(), return_inverse=True)
    vectors = item_vectors(kept["user_id"].to_numpy(), numbers, len(items), width=width, seed=seed)
    return pa.table({"item_id": pa.array(items.tolist(), pa.string()), "vector": vector_array(vectors)})
