"""What items without an event in training get on top of their scores, chosen on validation."""

from __future__ import annotations

import torch

from models.common.recommender import Queries
from models.recommenders.fitting import NDCG, validate
from models.recommenders.next_item import NextItemModel

BONUSES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # logits: each 0.7 doubles the odds of an item


def fit_cold_bonus(
    model: NextItemModel, counts: torch.Tensor, valid: Queries, *, filter_seen: bool
) -> tuple[float, int]:
    """Gives a model the bonus with the highest NDCG@10 on validation; of equally good ones the smallest.

    Nothing can be chosen where validation asks for no item without an event: the bonus is 0.

    Args:
        model: a fitted one, in evaluation mode.
        counts: how often training chooses each item, int64 [N].
        valid: queries that choose, all of them, so that what cold items gain and what warm ones lose both count.
        filter_seen: whether lists leave out what a user has met.

    Returns:
        The bonus, and how many queries ask for an item without an event.
    """

    def gain(bonus: float) -> float:
        model.favour_cold(bonus, counts)
        return validate(model, valid, filter_seen=filter_seen)[NDCG]

    cold = int((counts[valid.target] == 0).sum())
    bonus = max(BONUSES, key=gain) if cold else 0.0
    model.favour_cold(bonus, counts)
    return bonus, cold
