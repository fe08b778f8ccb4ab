"""Recommending by what is chosen together: items that the users of one's own items chose, too."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse

from models.common.jagged import Jagged, last
from models.common.recommender import BLOCK, Queries, Recommended, best, blocks, concatenate, recommended
from models.evaluation.lists import CUT, ndcg, ranks
from models.recommenders.content import DECAYS
from models.recommenders.settings import ItemKnnSettings
from storage.artifacts import save_model

DECAY = 0.7  # with which neighbours and shrinkage are chosen, before it is chosen itself
COUNTED = 1 << 24  # pairs of items that are counted at once, unless one item has more


@dataclass(frozen=True)
class ItemKnn:
    """Item-kNN on co-occurrence (Sarwar et al. 2001, doi 10.1145/371920.372071).

    Two items are as similar as the cosine of their users, shrunk where these are few: users of both / (sqrt(users of
    one * users of the other) + shrinkage), as in Dacrema et al. 2019 (arXiv 1907.06902). An item's score is the sum of
    its similarities to the items of the history that have it among their neighbours, each weighted by decay ** age: the
    last item has age 0. An item with no score is not recommended; so who has no history gets no item.

    Attributes:
        neighbours: int64 [N, K], rows of the most similar items, the best first; row 0 where similarity is 0.
        similarity: float32 [N, K], beside them.
        decay: 0 to 1.
        shrinkage: what the similarities were computed with.
    """

    kind: ClassVar[str] = "item_knn"

    neighbours: torch.Tensor
    similarity: torch.Tensor
    decay: float
    shrinkage: float

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`."""
        items, found = len(self.neighbours), []
        for (values, offsets, _), own in blocks(histories, banned, values=items, most=BLOCK):
            age = torch.repeat_interleave(offsets[1:], offsets.diff()) - 1 - torch.arange(len(values))
            weights = torch.tensor(self.decay).pow(age)
            users = sparse.csr_array((weights.numpy(), values.numpy(), offsets.numpy()), (len(offsets) - 1, items))
            scores = torch.from_numpy((users @ self._matrix).toarray())
            scores[scores == 0] = -torch.inf
            found.append(best(scores, k=k, banned=own, allowed=allowed))
        return concatenate(found, k=k)

    @functools.cached_property
    def _matrix(self) -> sparse.csr_array:
        """The similarities as a matrix [N, N], made once: SciPy copies the rows of all neighbours."""
        items, width = self.neighbours.shape
        values = self.similarity.flatten().numpy(), self.neighbours.flatten().numpy(), np.arange(items + 1) * width
        return sparse.csr_array(values, (items, items))

    def save(self, uri: str) -> None:
        """Writes an artifact for `models.recommenders.artifacts.load`."""
        tensors = {"neighbours": self.neighbours, "similarity": self.similarity}
        save_model(uri, self.kind, {"decay": self.decay, "shrinkage": self.shrinkage}, tensors)

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ItemKnn:
        """Rebuilds what `save` wrote."""
        return cls(tensors["neighbours"], tensors["similarity"], config["decay"], config["shrinkage"])


def fit_item_knn(
    settings: ItemKnnSettings, sequences: Jagged, items: int, valid: Queries, *, filter_seen: bool
) -> ItemKnn:
    """Counts what users chose together, and chooses by NDCG@10 how much of that is used.

    Args:
        settings: with what is tried.
        sequences: item rows of each user's training history.
        items: of the catalogue, N.
        valid: queries that choose the neighbours and the shrinkage, then the decay.
        filter_seen: whether lists leave out what a user has met.
    """
    banned = valid.seen if filter_seen else None

    def score(model: ItemKnn) -> float:
        rank = ranks(recommended(model, valid.histories, k=CUT, banned=banned), valid.target.numpy())
        return float(ndcg(rank, CUT).sum())

    counted, most = last(sequences, settings.counted), max(settings.neighbours)
    tried: list[ItemKnn] = []
    for shrinkage in settings.shrinkages:
        neighbours, similarity = nearest(counted, items, width=most, shrinkage=shrinkage)
        tried += [
            ItemKnn(neighbours[:, :width], similarity[:, :width], DECAY, shrinkage) for width in settings.neighbours
        ]
    chosen = max(tried, key=score)
    return max((replace(chosen, decay=decay) for decay in DECAYS), key=score)


def nearest(sequences: Jagged, items: int, *, width: int, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns each item's most similar other items and their similarities, [N, width]; of equal ones the lower row.

    Row 0 with similarity 0 stands where fewer items have a user in common. See `ItemKnn`.
    """
    users = len(sequences.offsets) - 1
    owner = np.repeat(np.arange(users), sequences.offsets.diff().numpy())
    chosen = sparse.csr_array((np.ones(len(owner), np.float32), (owner, sequences.values.numpy())), (users, items))
    chosen.data[:] = 1  # also where an item was chosen again
    of_items = chosen.T.tocsr()
    root = np.sqrt(of_items.sum(axis=1))
    pairs = np.cumsum(of_items @ chosen.sum(axis=1), dtype=np.float64)  # at most so many counts up to an item
    width = min(width, items)
    neighbours, similarity = np.zeros((items, width), np.int64), np.zeros((items, width), np.float32)
    start = 0
    while start < items:
        done = pairs[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(pairs, done + COUNTED, side="right")))
        counts = (of_items[start:end] @ chosen).tocoo()
        one, other = counts.row + start, counts.col
        similar = counts.data / (root[one] * root[other] + shrinkage)
        others = one != other
        one, other, similar = one[others], other[others], similar[others]
        order = np.lexsort((other, -similar, one))
        one, other, similar = one[order], other[order], similar[order]
        place = np.arange(len(one)) - np.searchsorted(one, one)
        top = place < width
        neighbours[one[top], place[top]], similarity[one[top], place[top]] = other[top], similar[top]
        start = end
    return torch.from_numpy(neighbours), torch.from_numpy(similarity)
