"""The baseline that every recommender has to beat: how popular an item was in training."""

from __future__ import annotations

import torch

from models.common.jagged import Jagged
from models.common.recommender import BLOCK, Recommended, best, blocks, concatenate


class MostPopular:
    """Recommends the items with the most events in training to everyone; of equal ones the lower row first."""

    def __init__(self, counts: torch.Tensor) -> None:
        """Takes the number of training events of every item, [N]."""
        self.counts = counts.float()

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`; an item's score is its number of events."""
        found = []
        for part, own in blocks(histories, banned, values=len(self.counts), most=BLOCK):
            scores = self.counts.repeat(len(part.offsets) - 1, 1)
            found.append(best(scores, k=k, banned=own, allowed=allowed))
        return concatenate(found, k=k)
