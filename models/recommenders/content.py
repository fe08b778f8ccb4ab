"""Recommending by content: items whose embeddings are like those of a user's last items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import BLOCK, Recommended, best, blocks, concatenate, recommended
from models.evaluation.lists import CUT, ndcg, ranks

DECAYS = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)  # from the last item alone to the mean of the history
# What the most popular item has over the least popular one, in units of cosine; of equally good ones the first counts.
# None is 0: who has no history gets the popular items.
POPULARITY_WEIGHTS = (1.0, 0.25, 0.5, 2.0, 4.0)
RETRIEVED = 50  # candidates among which the next item should be


@dataclass(frozen=True)
class Content:
    """Item-kNN on embeddings.

    The user's vector is the sum of the vectors of their items, each weighted by decay ** age: the last item has age 0,
    the one before 1. An item's score is its product with that: the similarity of Sarwar et al. 2001 (doi
    10.1145/371920.372071), taken between embeddings. Who has no history gets no item.

    With a bonus the user's vector is scaled to unit length and an item's score is its cosine and its bonus, so that who
    has no history gets the items with the highest one: candidates for a ranker.

    Attributes:
        vectors: float32 [N, D], unit length.
        decay: 0 to 1.
        bonus: float32 [N], in units of cosine; see `popularity_bonus`.
    """

    vectors: torch.Tensor
    decay: float
    bonus: torch.Tensor | None = None

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`."""
        every = blocks(histories, banned, values=len(self.vectors), most=BLOCK)
        return concatenate([best(self._scores(part), k=k, banned=own, allowed=allowed) for part, own in every], k=k)

    def _scores(self, histories: Jagged) -> torch.Tensor:
        lengths = histories.offsets.diff()
        age = torch.repeat_interleave(histories.offsets[1:], lengths) - 1 - torch.arange(len(histories.values))
        weights = torch.tensor(self.decay).pow(age)
        users = functional.embedding_bag(
            histories.values, self.vectors, histories.offsets[:-1], mode="sum", per_sample_weights=weights
        )
        if self.bonus is None:
            scores = users @ self.vectors.T
            scores[lengths == 0] = -torch.inf
            return scores
        return (functional.normalize(users) @ self.vectors.T).add_(self.bonus)


def normalise(embeddings: torch.Tensor, of: torch.Tensor | None = None) -> torch.Tensor:
    """Standardises every dimension over the catalogue, then scales every item to unit length; float32 [N, D].

    Args:
        embeddings: float32 [N, D].
        of: of the catalogue's items, where the embeddings are those of others.
    """
    catalogue = embeddings if of is None else of
    deviation = catalogue.std(0, correction=0).clamp_min(1e-6)
    return functional.normalize((embeddings - catalogue.mean(0)) / deviation, dim=1)


def popularity_bonus(popularity: torch.Tensor, weight: float) -> torch.Tensor:
    """Returns `weight` for the most popular item down to 0 for the least, by ranks; float32 [N].

    Args:
        popularity: float [N], higher first.
        weight: see POPULARITY_WEIGHTS.
    """
    order = popularity.argsort(descending=True, stable=True)
    bonus = torch.empty(len(order))
    bonus[order] = torch.linspace(weight, 0, len(order))
    return bonus


def content_and_popularity(embeddings: torch.Tensor, popularity: torch.Tensor, weight: float) -> Content:
    """Returns what finds candidates for a ranker: items near the mean of the history, the popular ones first.

    Args:
        embeddings: float32 [N, D].
        popularity: float [N], higher first.
        weight: of popularity, see `fit_popularity_weight`.
    """
    return Content(normalise(embeddings), decay=1.0, bonus=popularity_bonus(popularity, weight))


def fit_popularity_weight(
    embeddings: torch.Tensor, popularity: torch.Tensor, histories: Jagged, target: torch.Tensor, *, banned: Jagged
) -> float:
    """Chooses the weight of popularity with the highest recall@50 on validation queries.

    Args:
        embeddings: float32 [N, D].
        popularity: float [N], higher first.
        histories: of Q queries, item rows.
        target: the item that came next, int64 [Q].
        banned: what their lists must not hold.
    """

    def hits(weight: float) -> float:
        model = content_and_popularity(embeddings, popularity, weight)
        return float((ranks(recommended(model, histories, k=RETRIEVED, banned=banned), target.numpy()) > 0).sum())

    return max(POPULARITY_WEIGHTS, key=hits)


def fit_content(
    embeddings: torch.Tensor, histories: Jagged, target: torch.Tensor, *, banned: Jagged | None = None
) -> Content:
    """Chooses the decay with the highest NDCG@10 on validation queries; without a bonus.

    Args:
        embeddings: float32 [N, D].
        histories: of Q queries, item rows.
        target: the item that came next, int64 [Q].
        banned: what their lists must not hold.
    """
    vectors = normalise(embeddings)

    def score(model: Content) -> float:
        rank = ranks(recommended(model, histories, k=CUT, banned=banned), target.numpy())
        return float(ndcg(rank, CUT).sum())

    return max((Content(vectors, decay) for decay in DECAYS), key=score)
