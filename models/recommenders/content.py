"""Item-kNN on embeddings: items that are like a user's last ones, the latest weighing most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import Recommended, best, recommended
from models.evaluation.lists import CUT, ndcg, ranks
from models.recommenders.retriever import normalise

DECAYS = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)  # from the last item alone to the mean of the history


@dataclass(frozen=True)
class ItemKNN:
    """An item's score is the sum of its cosines to the items of the history, each weighted by decay ** age.

    The similarity of Sarwar et al. 2001 (doi 10.1145/371920.372071), taken between embeddings. The last item has age
    0, the one before 1. Who has no history gets no item.

    Attributes:
        vectors: float32 [N, D], unit length.
        decay: 0 to 1.
    """

    vectors: torch.Tensor
    decay: float

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`."""
        lengths = histories.offsets.diff()
        age = torch.repeat_interleave(histories.offsets[1:], lengths) - 1 - torch.arange(len(histories.values))
        weights = torch.tensor(self.decay).pow(age)
        users = functional.embedding_bag(
            histories.values, self.vectors, histories.offsets[:-1], mode="sum", per_sample_weights=weights
        )
        scores = users @ self.vectors.T
        scores[lengths == 0] = -torch.inf
        return best(scores, k=k, banned=banned, allowed=allowed)


def fit_itemknn(
    embeddings: torch.Tensor, histories: Jagged, target: torch.Tensor, *, banned: Jagged | None = None
) -> ItemKNN:
    """Choose the decay with the highest NDCG@10 on validation queries.

    Args:
        embeddings: float32 [N, D].
        histories: of Q queries, item rows.
        target: the item that came next, int64 [Q].
        banned: what their lists must not hold.
    """
    vectors = normalise(embeddings)

    def score(model: ItemKNN) -> float:
        rank = ranks(recommended(model, histories, k=CUT, banned=banned), target.numpy())
        return float(ndcg(rank, CUT).sum())

    return max((ItemKNN(vectors, decay) for decay in DECAYS), key=score)
