"""The protocol of recommenders: the best items of the catalogue for users given by their histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.nn import functional

from models.common.jagged import Jagged, gather

BLOCK = 256  # users whose scores of the whole catalogue are held at once, at most
BLOCK_VALUES = 1 << 27  # scores that are held at once


class Queries(NamedTuple):
    """Q queries for the next item; items are rows of the catalogue.

    Those that are drawn from a log are in a random order, so that the first of them are a sample.
    """

    user: np.ndarray  # int64 [Q], a number of the user's own
    histories: Jagged  # the user's last positives by then, oldest first
    target: torch.Tensor  # int64 [Q]
    seen: Jagged  # all that the user had met by then, in order of time; nothing where repeats are asked for
    time: np.ndarray | None = None  # int64 [Q], microseconds, where it is known

    def take(self, rows: np.ndarray) -> Queries:
        """Returns the queries at rows, int64 [M]."""
        at = torch.from_numpy(rows)
        histories, seen = (gather(lists, at) for lists in (self.histories, self.seen))
        time = None if self.time is None else self.time[rows]
        return Queries(self.user[rows], histories, self.target[at], seen, time)

    def first(self, count: int) -> Queries:
        """Returns the first so many queries, or all where there are fewer."""
        return self if count >= len(self.target) else self.take(np.arange(count))


class Recommended(NamedTuple):
    """The k best items of B users, best first."""

    items: torch.Tensor  # int64 [B, k], rows of the catalogue; -1 where fewer are left
    scores: torch.Tensor  # float32 [B, k], -inf there
    exact: torch.Tensor | None = None  # bool [B], whether a search is proved to miss nothing; None: all were scored

    def take(self, rows: torch.Tensor) -> Recommended:
        """Returns the lists at rows, int64 [M]."""
        exact = None if self.exact is None else self.exact[rows]
        return Recommended(self.items[rows], self.scores[rows], exact)


class Recommender(Protocol):
    """Anything that answers which items come next."""

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """Returns the k best items of every user.

        Args:
            histories: item rows of B users, oldest first; may be empty. All that is given or returned is on the CPU.
            k: length of the lists.
            banned: item rows that each user must not get, in any order.
            allowed: bool [N], items that anybody may get; all where it is None.
        """
        ...


@runtime_checkable
class Searcher(Recommender, Protocol):
    """A recommender that scores the items of a search alone, and makes several searches in one."""

    @property
    def most(self) -> int:
        """How many items a search finds at most; longer lists are an error."""
        ...

    def recommend_each(
        self, histories: Jagged, *, k: int, banned: Sequence[Jagged | None], allowed: torch.Tensor | None = None
    ) -> list[Recommended]:
        """Returns what `recommend` returns for each of some banned items."""
        ...


class FittedRecommender(Recommender, Protocol):
    """A recommender with an artifact."""

    def save(self, uri: str, state: dict[str, torch.Tensor]) -> None:
        """Writes the artifact from the learner's whole state dict."""
        ...


def blocks(
    histories: Jagged, banned: Jagged | None, *, values: int, most: int
) -> Iterator[tuple[Jagged, Jagged | None]]:
    """Yields the users block by block: their histories, and what they must not get.

    Args:
        histories, banned: as of `Recommender.recommend`.
        values: scores that are held of a user.
        most: users of a block, at most; fewer where there are many scores.
    """
    users, at_once = len(histories.offsets) - 1, max(1, min(most, BLOCK_VALUES // values))
    if users <= at_once:  # as for the query of a service, which need not wait for copies
        yield histories, banned
        return
    for rows in torch.arange(users).split(at_once):
        yield gather(histories, rows), None if banned is None else gather(banned, rows)


def recommend_blocks(
    recommender: Recommender, histories: Jagged, *, k: int, banned: Jagged | None = None
) -> Recommended:
    """Returns the lists of Q users, computed block by block so that memory is bounded."""
    found = []
    for rows in torch.arange(len(histories.offsets) - 1).split(BLOCK):
        left_out = None if banned is None else gather(banned, rows)
        found.append(recommender.recommend(gather(histories, rows), k=k, banned=left_out))
    return concatenate(found, k=k)


def recommended(recommender: Recommender, histories: Jagged, *, k: int, banned: Jagged | None = None) -> np.ndarray:
    """Returns the items of `recommend_blocks`: rows int64 [Q, k], -1 where there are fewer."""
    return recommend_blocks(recommender, histories, k=k, banned=banned).items.numpy()


def masked_and_not(
    recommender: Recommender, histories: Jagged, *, k: int, banned: Jagged
) -> tuple[Recommended, Recommended]:
    """Returns two lists for every user: what `recommend_blocks` returns with banned items, and without."""
    masked, plain = [], []
    for rows in torch.arange(len(histories.offsets) - 1).split(BLOCK):
        given, own = gather(histories, rows), gather(banned, rows)
        if isinstance(recommender, Searcher):
            one, other = recommender.recommend_each(given, k=k, banned=[own, None])
        else:
            other = recommender.recommend(given, k=k + max(own.offsets.diff().tolist(), default=0))
            if other.exact is None:
                one, other = without(other, own, k=k), Recommended(other.items[:, :k], other.scores[:, :k])
            else:  # an index, which misses less where it looks for more
                one, other = (recommender.recommend(given, k=k, banned=each) for each in (own, None))
        masked.append(one)
        plain.append(other)
    return concatenate(masked, k=k), concatenate(plain, k=k)


def without(lists: Recommended, banned: Jagged, *, k: int) -> Recommended:
    """Returns the first k items of every list that are not banned.

    Args:
        lists: of B users, longer than k by the number of banned items of the user who has the most.
        banned: item rows of each user, in any order.
    """
    user = torch.arange(len(lists.items))
    pairs = banned.values * len(user) + torch.repeat_interleave(user, banned.offsets.diff())
    gone = torch.isin(lists.items * len(user) + user[:, None], pairs)
    order = gone.sort(dim=1, stable=True).indices[:, :k]
    return lists._replace(items=lists.items.gather(1, order), scores=lists.scores.gather(1, order))


def concatenate(parts: Sequence[Recommended], *, k: int) -> Recommended:
    """Returns the lists of several blocks of users as one; of none where there is no block."""
    if not parts:
        return Recommended(torch.empty(0, k, dtype=torch.int64), torch.empty(0, k))
    exact = [part.exact for part in parts if part.exact is not None]
    return Recommended(
        torch.cat([part.items for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat(exact) if exact else None,
    )


def best(
    scores: torch.Tensor, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
) -> Recommended:
    """Returns the k best items by their scores, float [B, N], overwritten here; of equal ones the lower row first."""
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    if banned is not None:
        user = torch.repeat_interleave(torch.arange(len(scores)), banned.offsets.diff())
        scores[user, banned.values] = -torch.inf
    items, _ = top_columns(scores, k)
    values = scores.gather(1, items)
    order = values.argsort(dim=1, descending=True, stable=True)
    return filled_up(items.gather(1, order), values.gather(1, order).float(), k=k)


def filled_up(items: torch.Tensor, scores: torch.Tensor, *, k: int) -> Recommended:
    """Returns lists of at most k items, best first, [B, n], as k items each: none where a score is -inf or missing."""
    items, missing = items.masked_fill(scores == -torch.inf, -1), k - items.shape[1]
    return Recommended(
        functional.pad(items, (0, missing), value=-1), functional.pad(scores, (0, missing), value=-torch.inf)
    )


def top_columns(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where the best `count` of every row are, and the best of the others.

    Columns are in ascending order; of equal scores the first ones are taken, which `topk` alone leaves open.

    Args:
        scores: float [B, N].

    Returns:
        int64 [B, min(count, N)] columns, and float [B], -inf where nothing is left out.
    """
    if scores.shape[1] <= count:
        every = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores), 1)
        return every, torch.full_like(scores[:, 0], -torch.inf)
    top = scores.topk(count + 1, dim=1)
    columns, dropped = top.indices[:, :count].sort(dim=1).values, top.values[:, count]
    tied = ((top.values[:, count - 1] == dropped) & (dropped > -torch.inf)).nonzero()[:, 0]
    if len(tied):
        rows, least = scores[tied], dropped[tied, None]
        above, equal = rows > least, rows == least
        kept = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
        columns[tied] = kept.nonzero()[:, 1].view(len(tied), count)
    return columns, dropped
