"""Candidates from several recommenders, merged; and how the places of an item in several lists become one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from models.common.jagged import Jagged, chosen
from models.common.recommender import Recommended, Recommender, Searcher
from models.recommenders.content import Content

SMOOTHING = 60.0  # of reciprocal rank fusion, as published; with less of it the first places count for more


class Candidates(NamedTuple):
    """C places for candidates of each of B users, no item twice.

    Attributes:
        items: rows of the catalogue, int64 [B, C]; -1 where there is none.
        places: of the items in each of S lists, from 0; infinity where a list lacks it; float32 [B, C, S].
    """

    items: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class WithNew:
    """Content that knows new items, of which nobody can say how popular they are.

    Its list is that of the items of old, and a new item stands in it where the cosine alone puts it among all items.

    Attributes:
        content: with a bonus, which is -infinity for new items.
        old: how many items are not new; they come first.
    """

    content: Content
    old: int

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`; the scores are minus the places."""
        known, near = (
            each.recommend(histories, k=k, banned=banned, allowed=allowed).items
            for each in (self.content, replace(self.content, bonus=None))
        )
        new, place = near >= self.old, torch.arange(k).float()
        items = torch.cat([known, near.masked_fill(~new, -1)], dim=1)
        places = torch.cat([place.expand(known.shape), place + 0.5 - new.cumsum(1)], dim=1)
        scores, order = (-places.masked_fill(items < 0, torch.inf)).sort(dim=1, descending=True, stable=True)
        return Recommended(items.gather(1, order)[:, :k], scores[:, :k])


def quotas(names: Sequence[str], total: int) -> dict[str, int]:
    """Shares candidates among recommenders evenly, the first ones get what is left over.

    >>> quotas(["product_codes", "content", "item_knn"], 200)
    {'product_codes': 67, 'content': 67, 'item_knn': 66}
    """
    each, more = divmod(total, len(names))
    return {name: each + (place < more) for place, name in enumerate(names)}


def find(
    recommenders: Mapping[str, Recommender],
    wanted: Mapping[str, int],
    histories: Jagged,
    *,
    banned: Jagged,
    allowed: torch.Tensor | None = None,
    known: Mapping[str, int] | None = None,
) -> Candidates:
    """Returns what several recommenders find for B users.

    Args:
        recommenders: by name.
        wanted: length of the list of each one that is to find one; what searches finds no more than it can.
        histories: item rows of B users, oldest first.
        banned: item rows that each user must not get.
        allowed: bool [N], items that anybody may get; all where it is None.
        known: how many of the first items a recommender knows, by name; all where it is not named.
    """
    found = []
    for name, count in wanted.items():
        recommender = recommenders[name]
        k = min(count, recommender.most) if isinstance(recommender, Searcher) else count
        most = (known or {}).get(name)
        past, out = (each if most is None else chosen(each, each.values < most) for each in (histories, banned))
        may = None if allowed is None else allowed[:most]
        found.append(recommender.recommend(past, k=k, banned=out, allowed=may).items)
    return merged(found)


def merged(lists: Sequence[torch.Tensor]) -> Candidates:
    """Merges S lists of items, int64 [B, k] each, best first, -1 where there are fewer.

    >>> merged([torch.tensor([[7, 8]]), torch.tensor([[8, 9, -1]])])
    Candidates(items=tensor([[ 7,  8,  9, -1, -1]]), places=tensor([[[0., inf],
             [1., 0.],
             [inf, 1.],
             [inf, inf],
             [inf, inf]]]))
    """
    items = torch.cat(list(lists), dim=1)
    source = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor([part.shape[1] for part in lists]))
    place = torch.cat([torch.arange(part.shape[1]) for part in lists]).float()
    # what is missing goes to the end
    known, order = items.masked_fill(items < 0, torch.iinfo(torch.int64).max).sort(dim=1, stable=True)
    first = torch.ones_like(known, dtype=torch.bool)
    first[:, 1:] = known[:, 1:] != known[:, :-1]
    column = first.cumsum(1) - 1  # where the item of each entry goes
    there = items.gather(1, order) >= 0
    user = torch.arange(len(items))[:, None].expand_as(column)[there]
    rows = torch.full_like(items, -1)
    rows[user, column[there]] = known[there]
    places = torch.full((*items.shape, len(lists)), torch.inf)
    places[user, column[there], source[order][there]] = place[order][there]
    return Candidates(rows, places)


def placed(scores: torch.Tensor) -> torch.Tensor:
    """Returns the place of each candidate by its score, from 0, float32 [B, C]; infinity for a score of -inf."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.empty_like(scores)
    places.scatter_(1, order, torch.arange(scores.shape[1], dtype=scores.dtype).expand_as(scores))
    return places.masked_fill(scores == -torch.inf, torch.inf).float()


def overlap(places: torch.Tensor, one: int) -> torch.Tensor:
    """Returns which share of the items of one of S lists each list has; float32 [B, S].

    >>> overlap(torch.tensor([[[0.0, 3.0], [1.0, torch.inf], [torch.inf, 0.0]]]), 0)
    tensor([[1.0000, 0.5000]])
    """
    there = places < torch.inf
    own = there[..., [one]]
    return (there & own).sum(1) / own.sum(1).clamp_min(1)


def reciprocal(places: torch.Tensor, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Returns what places are worth: 1 for the first, 0 for what a list lacks."""
    return smoothing / (smoothing + places)


def fused(worth: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores candidates by reciprocal rank fusion (Cormack, Clarke and Buettcher 2009, doi 10.1145/1571941.1572114).

    Here each list has a weight, and the result is scaled so that a candidate that is first everywhere has 1.

    Args:
        worth: of their places, see `reciprocal`, float32 [B, C, S].
        weights: float32 [S], 0 or more, one of them above 0.

    Returns:
        float32 [B, C]; 0 for what only lists without weight hold.
    """
    return worth @ (weights / weights.sum())
