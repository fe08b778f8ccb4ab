"""Item vectors from who chose what: what a quantizer may be aligned with."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils.extmath import randomized_svd


def item_vectors(users: np.ndarray, items: np.ndarray, count: int, *, width: int, seed: int) -> np.ndarray:
    """Factors of the log, so that items that the same users chose are near each other.

    The truncated SVD of the user-item matrix, each choice weighted by 1 / √(choices of the user · choices of the item)
    (the normalised adjacency; pure SVD of Cremonesi et al., RecSys 2010), rows to unit length.

    Args:
        users, items: integers from 0 [E], one pair per event; repeated pairs count once.
        count: N, number of items.
        width: of the vectors; less where there are fewer users or items.

    Returns:
        Float32 [N, width]; NaN in the rows of items without an event.
    """
    pairs = np.unique(np.column_stack([users, items]), axis=0)
    users, items = pairs[:, 0], pairs[:, 1]
    by_user, by_item = np.bincount(users), np.bincount(items, minlength=count)
    weights = 1 / np.sqrt(by_user[users] * by_item[items])
    matrix = csr_array((weights, (items, users)), shape=(count, len(by_user)))
    rank = min(width, *matrix.shape)
    left, values, _ = randomized_svd(matrix, rank, random_state=seed)
    vectors = left * values
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(lengths > 1e-12, vectors / np.maximum(lengths, 1e-12), np.nan).astype(np.float32)
