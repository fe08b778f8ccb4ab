"""How well the two sides of pairs, such as texts and pictures, find each other by similarity."""

from __future__ import annotations

import numpy as np

SAME = 1e-6  # similarities that differ by less are ties


def ahead(similarity: np.ndarray) -> np.ndarray:
    """Returns how many other columns are more similar to each row than its own one, float64 [N]; ties count half.

    Args:
        similarity: float [N, N], of N pairs: the diagonal holds those that belong together.
    """
    own = np.diagonal(similarity)[:, None]
    ties = (np.abs(similarity - own) <= SAME).sum(1) - 1  # its own column is one of them
    return (similarity > own + SAME).sum(1) + ties / 2
