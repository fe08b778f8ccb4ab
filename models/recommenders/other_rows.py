"""A recommender of an earlier catalogue, asked about and answering in rows of a later one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.common.jagged import Jagged
from models.common.recommender import Recommended, Recommender, Searcher


class OnOtherRows:
    """What it does not know is left out of histories, and what has left the catalogue out of answers."""

    def __init__(self, recommender: Recommender, rows: torch.Tensor, items: int) -> None:
        """Takes a recommender of so many items, and where each of N items is among them, int64 [N]; -1 for none."""
        self._recommender, self._rows = recommender, rows
        known = rows >= 0
        self._back = torch.full((items,), -1).index_put((rows[known],), known.nonzero()[:, 0])

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`."""
        left_out = None if banned is None else self._there(banned)
        found = self._recommender.recommend(
            self._there(histories), k=k, banned=left_out, allowed=self._allowed(allowed)
        )
        return self._here(found)

    def _there(self, lists: Jagged) -> Jagged:
        """Returns lists without the items that the recommender does not know, in its rows."""
        values = self._rows[lists.values]
        before = torch.cat([torch.zeros(1, dtype=torch.int64), (values >= 0).cumsum(0)])
        return Jagged(values[values >= 0], before[lists.offsets.long()])

    def _allowed(self, allowed: torch.Tensor | None) -> torch.Tensor:
        still = self._back >= 0
        return still if allowed is None else still & allowed[self._back]

    def _here(self, found: Recommended) -> Recommended:
        return found._replace(items=self._back[found.items].where(found.items >= 0, -1))


class SearcherOnOtherRows(OnOtherRows):
    """The same for one that makes several searches in one."""

    _recommender: Searcher

    @property
    def most(self) -> int:
        """See `models.common.recommender.Searcher`."""
        return self._recommender.most

    def recommend_each(
        self, histories: Jagged, *, k: int, banned: Sequence[Jagged | None], allowed: torch.Tensor | None = None
    ) -> list[Recommended]:
        """See `models.common.recommender.Searcher`."""
        left_out = [None if each is None else self._there(each) for each in banned]
        found = self._recommender.recommend_each(
            self._there(histories), k=k, banned=left_out, allowed=self._allowed(allowed)
        )
        return [self._here(each) for each in found]


def on_other_rows(recommender: Recommender, rows: torch.Tensor, items: int) -> OnOtherRows:
    """Returns a recommender of so many items, behind a map of N items to its rows, int64 [N]; -1 for none."""
    kind = SearcherOnOtherRows if isinstance(recommender, Searcher) else OnOtherRows
    return kind(recommender, rows, items)
