"""What users chose, as item vectors: from the training part of the log alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.semantic_ids.collaborative import item_vectors
from operators.columns import matrix_column
from operators.log.encoding import read_log
from operators.log.split import Split
from storage.run import RunDir


def collaborative_vectors(run: RunDir, split: Split, *, width: int, seed: int) -> pa.Table:
    """Vectors (item_id, vector) of the items that users chose in the training part of a run's log.

    Args:
        split: what is training.
        width: of the vectors.
        seed: of the factorisation.

    Raises:
        UserError: the log cannot be split so.
    """
    log = read_log(run)
    events, ids = log.events, log.items
    chosen = events.take((split.numbers(events) == 0) & (events.label > 0))
    vectors = item_vectors(chosen.user, chosen.item, len(ids), width=width, seed=seed)
    known = ~np.isnan(vectors).any(axis=1)
    return pa.table({"item_id": ids.filter(pa.array(known)), "vector": matrix_column(vectors[known])})
