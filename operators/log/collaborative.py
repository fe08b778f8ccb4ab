"""What users chose, as item vectors: from the training part of the log alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.semantic_ids.collaborative import item_vectors
from operators.columns import matrix_column
from operators.log.partitions import check_trained, item_ids, open_log
from operators.log.sequences import split_parts
from operators.log.split import Split
from storage.run import RunDir

MOST = 20_000_000  # positives that are factorised, about
SHARES = 1_000_003  # prime, so that what a user draws has nothing to do with the number of partitions


def collaborative_vectors(run: RunDir, split: Split, *, width: int, seed: int) -> pa.Table:
    """Vectors (item_id, vector) of the items that users chose in the training part of a run's log.

    Of a log with more than `MOST` positives a share of the users is read, drawn by their hashes.

    Args:
        split: what is training.
        width: of the vectors.
        seed: of the factorisation.

    Raises:
        UserError: the log cannot be split so, or nothing in training was liked.
    """
    log, ids = open_log(run), item_ids(run)
    share, users, items = MOST / log.about.positives, [], []
    for events, numbers, hashes in split_parts(log, split):
        drawn = hashes % SHARES < share * SHARES
        chosen = events.take((numbers == 0) & (events.label > 0) & drawn[events.user])
        users.append(hashes[chosen.user])
        items.append(chosen.item)
    check_trained(sum(map(len, items)))
    _, user = np.unique(np.concatenate(users), return_inverse=True)
    vectors = item_vectors(user, np.concatenate(items), len(ids), width=width, seed=seed)
    known = ~np.isnan(vectors).any(axis=1)
    return pa.table({"item_id": ids.filter(pa.array(known)), "vector": matrix_column(vectors[known])})
