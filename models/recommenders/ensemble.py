"""An ensemble: several next-item models of one run, whose log-probabilities of the next item are added up."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommended, best, blocks, concatenate
from models.recommenders.fitting import NDCG, validate
from models.recommenders.next_item import USERS, NextItemModel
from storage import files
from storage.artifacts import save_model


class Ensemble:
    """An item's score is the weighted sum of its log-probabilities over the catalogue, one by each member.

    An item that a member with a weight never recommends is not recommended. The whole catalogue is scored, however
    large it is.
    """

    kind: ClassVar[str] = "ensemble"

    def __init__(self, members: Sequence[NextItemModel], weights: Sequence[float]) -> None:
        """Takes models of one catalogue, each of another kind, and the weight of each one."""
        self.weighed = list(zip(members, weights, strict=True))

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`."""
        found, values = [], 2 * self.weighed[0][0].items  # of a user; the scores of two members are held
        for part, own in blocks(histories, banned, values=values, most=USERS):
            found.append(best(self.scores(part), k=k, banned=own, allowed=allowed))
        return concatenate(found, k=k)

    def scores(self, histories: Jagged) -> torch.Tensor:
        """Returns the scores of all items, float32 [B, N], on the CPU."""
        parts = (weight * model.log_probs(histories) for model, weight in self.weighed if weight)
        return functools.reduce(torch.add, parts)

    def save(self, uri: str) -> None:
        """Writes an artifact for `models.recommenders.artifacts.load`: it holds its members' artifacts."""
        for member, _ in self.weighed:
            member.save(files.join(uri, member.kind), member.state_dict())
        weights = torch.tensor([weight for _, weight in self.weighed], dtype=torch.float64)
        save_model(uri, self.kind, {"members": [member.kind for member, _ in self.weighed]}, {"weights": weights})


def fit_ensemble(members: Sequence[NextItemModel], parts: int, valid: Queries, *, filter_seen: bool) -> Ensemble:
    """Chooses the weights with the highest NDCG@10 on validation; of equally good ones the most even.

    Args:
        members: see `Ensemble`.
        parts: weights are multiples of its inverse that add up to 1.
        valid: queries that choose.
        filter_seen: whether lists leave out what a user has met.
    """
    tried = (Ensemble(members, weights) for weights in shares(len(members), parts))
    return max(tried, key=lambda ensemble: validate(ensemble, valid, filter_seen=filter_seen)[NDCG])


def shares(members: int, parts: int) -> list[tuple[float, ...]]:
    """Returns every way in which so many members share 1 in multiples of 1 / parts, the even ones first.

    >>> shares(2, 4)
    [(0.5, 0.5), (0.25, 0.75), (0.75, 0.25), (0.0, 1.0), (1.0, 0.0)]
    """
    counts = (each for each in itertools.product(range(parts + 1), repeat=members) if sum(each) == parts)
    return sorted((tuple(count / parts for count in each) for each in counts), key=max)
