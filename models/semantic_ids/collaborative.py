"""Item vectors from who chose what, and what the content of items says of them where nobody has chosen yet."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils.extmath import randomized_svd

STRENGTHS = 10.0 ** np.arange(-4, 3)  # of the ridge regression, in units of the mean variance of the content


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


def impute(vectors: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Tells the vectors of all items from their content, by a ridge regression on the items that have a vector.

    What is told of an item that has one is learned from all the others (leave-one-out, in closed form): it is as far
    off as what is told of an item without. The strength is the one that is least far off in the squares.

    Args:
        vectors: float32 [N, W]; NaN in the rows of items without one, which not all may be.
        content: float32 [N, D].

    Returns:
        Float32 [N, W].
    """
    known = ~np.isnan(vectors).any(axis=1)
    right, centred = vectors[known], content - content[known].mean(0)
    mean, count = right.mean(0), len(right)
    squares, axes = np.linalg.eigh((centred[known].T @ centred[known]).astype(np.float64))
    squares = np.maximum(squares, 0.0)
    inputs = centred @ axes.astype(np.float32)
    products, weights = inputs[known].T @ (right - mean), inputs[known] ** 2

    def told(strength: float) -> tuple[float, np.ndarray]:
        shrunk = (1 / (squares + strength)).astype(np.float32)
        found = inputs @ (products * shrunk[:, None]) + mean
        off = (right - found[known]) / np.maximum(1 - 1 / count - weights @ shrunk, 1e-6)[:, None]
        found[known] = right - off
        return float((off**2).mean()), found

    tried = (told(strength) for strength in STRENGTHS * max(float(squares.mean()), 1e-6))
    return min(tried, key=lambda pair: pair[0])[1].astype(np.float32)
