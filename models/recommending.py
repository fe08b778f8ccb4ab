"""What every recommender of next items gives: the best items of the catalogue for users given by their histories."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from models.lists import Lists


class Recommended(NamedTuple):
    """The k best items of B users, best first."""

    items: torch.Tensor  # int64 [B, k], rows of the catalogue; -1 where fewer are left
    scores: torch.Tensor  # float32 [B, k], -inf there


class Recommender(Protocol):
    """Anything that recommends."""

    def recommend(
        self, histories: Lists, *, k: int, banned: Lists | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """The k best items of every user.

        Args:
            histories: item rows of every user, oldest first; may be empty.
            k: length of the lists.
            banned: item rows that a user must not get, in any order.
            allowed: bool [N], items that anybody may get; all where it is None.
        """
        ...


def best(
    scores: torch.Tensor, *, k: int, banned: Lists | None = None, allowed: torch.Tensor | None = None
) -> Recommended:
    """The k best items by their scores, float [B, N], overwritten here; of equal ones in it the lower row first."""
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    if banned is not None:
        user = torch.repeat_interleave(torch.arange(len(scores)), banned.offsets.diff())
        scores[user, banned.values] = -torch.inf
    width = min(k, scores.shape[1])
    top = scores.topk(width, dim=1)
    order = torch.argsort(top.indices, dim=1, stable=True)  # topk leaves the order of equal scores open
    values, items = top.values.gather(1, order), top.indices.gather(1, order)
    order = torch.argsort(values, dim=1, descending=True, stable=True)
    values, items = values.gather(1, order).float(), items.gather(1, order)
    items = items.masked_fill(values == -torch.inf, -1)
    missing = k - width
    return Recommended(
        torch.nn.functional.pad(items, (0, missing), value=-1),
        torch.nn.functional.pad(values, (0, missing), value=-torch.inf),
    )
