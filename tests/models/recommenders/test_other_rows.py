"""An earlier recommender in the rows of a later catalogue."""

from __future__ import annotations

import torch

from models.common.jagged import Jagged
from models.common.recommender import Recommended, best
from models.recommenders.other_rows import OnOtherRows, SearcherOnOtherRows, on_other_rows

ROWS = torch.tensor([3, -1, 0, 1])  # of four items now; the earlier item 2 has left


class Earlier:
    """Of four items, the one with the highest row first; notes what it is asked."""

    def recommend(self, histories, *, k, banned=None, allowed=None) -> Recommended:
        self.asked = histories
        scores = torch.arange(4.0).repeat(len(histories.offsets) - 1, 1)
        return best(scores, k=k, banned=banned, allowed=allowed)


class Searching(Earlier):
    most = 9

    def recommend_each(self, histories, *, k, banned, allowed=None) -> list[Recommended]:
        return [self.recommend(histories, k=k, banned=each, allowed=allowed) for each in banned]


def lists(*rows: list[int]) -> Jagged:
    values = [value for row in rows for value in row]
    return Jagged(torch.tensor(values, dtype=torch.int64), torch.tensor([0, *map(len, rows)]).cumsum(0))


def test_histories_and_answers_change_rows_and_strangers_are_left_out() -> None:
    earlier = Earlier()
    recommender = on_other_rows(earlier, ROWS, 4)
    assert type(recommender) is OnOtherRows
    found = recommender.recommend(lists([0, 1, 2], [1]), k=4, banned=lists([3, 1], []))
    assert earlier.asked.values.tolist() == [3, 0]
    assert earlier.asked.offsets.tolist() == [0, 2, 2]
    assert found.items.tolist() == [[0, 2, -1, -1], [0, 3, 2, -1]]  # never item 1, which is new, nor the one that left
    some = recommender.recommend(lists([]), k=2, allowed=torch.tensor([False, True, True, False]))
    assert some.items.tolist() == [[2, -1]]


def test_several_searches_stay_one() -> None:
    recommender = on_other_rows(Searching(), ROWS, 4)
    assert isinstance(recommender, SearcherOnOtherRows)
    assert recommender.most == 9
    one, other = recommender.recommend_each(lists([2]), k=2, banned=[lists([0]), None])
    assert one.items.tolist() == [[3, 2]]
    assert other.items.tolist() == [[0, 3]]
