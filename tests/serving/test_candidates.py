from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common.jagged import Jagged
from models.common.recommender import Recommended
from models.recommenders.popularity import MostPopular
from serving.candidates import SMOOTHING, find, fused, lent, merged, placed, quotas, reciprocal

LISTS = st.lists(st.lists(st.integers(0, 8), unique=True, max_size=5), min_size=1, max_size=4)


def padded(items: list[int], width: int = 5) -> list[int]:
    return items + [-1] * (width - len(items))


@given(st.lists(LISTS, min_size=1, max_size=4).filter(lambda users: len({len(user) for user in users}) == 1))
def test_merged_lists_hold_every_item_once_with_its_places(users: list[list[list[int]]]) -> None:
    sources = [torch.tensor([padded(user[number]) for user in users]) for number in range(len(users[0]))]
    found = merged(sources)
    assert found.items.shape == (len(users), 5 * len(sources))
    for user, items, places in zip(users, found.items.tolist(), found.places.tolist(), strict=True):
        known = [item for item in items if item >= 0]
        assert sorted(known) == sorted({item for source in user for item in source})
        for item, row in zip(items, places, strict=True):
            assert row == [source.index(item) if item in source else np.inf for source in user]


def test_merging_nobodys_lists() -> None:
    found = merged([torch.empty(0, 3, dtype=torch.int64), torch.empty(0, 2, dtype=torch.int64)])
    assert found.items.shape == (0, 5)
    assert found.places.shape == (0, 5, 2)


def test_places_are_by_score() -> None:
    scores = torch.tensor([[0.5, -torch.inf, 2.0, 0.5]])
    assert placed(scores).tolist() == [[1, np.inf, 0, 2]]


@pytest.mark.parametrize("weights", [[1.0, 0.0], [2.0, 6.0], [0.0, 1.0]])
def test_fused_scores_are_the_weighted_mean_of_reciprocal_ranks(weights) -> None:
    places = torch.tensor([[[0.0, 3.0], [1.0, torch.inf], [torch.inf, 0.0]]])
    expected = [
        sum(w * SMOOTHING / (SMOOTHING + place) for w, place in zip(weights, row, strict=True)) / sum(weights)
        for row in places[0].tolist()
    ]
    np.testing.assert_allclose(fused(reciprocal(places), torch.tensor(weights))[0].numpy(), expected, rtol=1e-6)


def test_one_list_alone_keeps_its_order() -> None:
    items = torch.randperm(50)[None, :20]
    found = merged([items, torch.arange(30)[None]])
    order = fused(reciprocal(found.places), torch.tensor([1.0, 0.0])).argsort(descending=True, stable=True)
    assert found.items[0, order[0, :20]].tolist() == items[0].tolist()


class Search:
    """Finds three items at most."""

    most = 3

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: object = None
    ) -> Recommended:
        return self.recommend_each(histories, k=k, banned=[banned])[0]

    def recommend_each(self, histories: Jagged, *, k: int, banned: object, allowed: object = None) -> list[Recommended]:
        assert k <= self.most
        users = len(histories.offsets) - 1
        return [Recommended(torch.arange(k).repeat(users, 1), torch.zeros(users, k))]


def test_a_search_is_asked_for_no_more_than_it_can_find() -> None:
    history = Jagged(torch.tensor([7]), torch.tensor([0, 1]))
    recommenders = {"search": Search(), "popularity": MostPopular(torch.arange(20))}
    found = find(recommenders, {"search": 10, "popularity": 10}, history, banned=history)
    assert found.items.shape == (1, 13)
    assert {0, 1, 2, 19} < set(found.items[0].tolist())


def test_quotas_add_up() -> None:
    for total in (1, 7, 200):
        for names in (["a"], ["a", "b", "c"]):
            shares = quotas(names, total)
            assert sum(shares.values()) == total
            assert max(shares.values()) - min(shares.values()) <= 1


def test_what_lists_cannot_have_is_worth_there_what_is_most_like_it() -> None:
    items, gains = (
        torch.tensor([3, 5, 8, 20, -1]),
        torch.tensor([[1.0, 0.1], [0.5, 0.2], [0.0, 0.4], [0.0, 0.0], [9.0, 9.0]]),
    )
    near = torch.tensor([[5, 7, 3, 1, 9, 2, 8], [4, 8, 6, 3, 0, 10, 11]])
    found = lent(items, gains, near, torch.tensor([7, 1]))
    torch.testing.assert_close(found, torch.tensor([[1.5 / 5, 0.7 / 5], [1.0 / 5, 0.5 / 5]]))
    assert lent(items, gains, near[:, :2], torch.tensor([4, 5, 7, 8])).tolist() == [[0, 0], [0, 0]]
