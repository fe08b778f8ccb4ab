"""Less of what a user does not want: the first thing that changes the scores of candidates."""

from __future__ import annotations

import torch


def less_like(scores: torch.Tensor, vectors: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Lowers the scores of candidates that are like items that a user does not want more of.

    A score is multiplied by 1 less the greatest cosine with such an item, where that is above 0.

    Args:
        scores: float32 [C], 0 or more, or -inf.
        vectors: of the candidates, unit length, float32 [C, D].
        negative: vectors of the items, unit length, float32 [n, D].
    """
    like = (vectors @ negative.T).amax(1).clamp(0, 1)
    return torch.where(scores > 0, scores * (1 - like), scores)
