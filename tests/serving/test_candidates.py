from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.common.jagged import Jagged, from_arrays
from models.common.recommender import Recommended
from models.recommenders.content import Content
from models.recommenders.popularity import MostPopular
from serving.candidates import SMOOTHING, WithNew, find, fused, merged, placed, quotas, reciprocal

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


def test_a_new_item_stands_where_its_looks_put_it() -> None:
    vectors = functional.normalize(torch.randn(12, 4), dim=1)
    bonus = torch.cat([torch.linspace(5, 0, 10), torch.full((2,), -torch.inf)])
    content, histories = Content(vectors, 1.0, bonus), from_arrays(np.array([10, 3]), np.array([0, 2, 2]))
    old = content.recommend(histories, k=12).items[0]
    near = Content(vectors, 1.0).recommend(histories, k=12).items[0].tolist()
    found = WithNew(content, 10).recommend(histories, k=12, banned=from_arrays(np.array([3]), np.array([0, 1, 1])))
    expected = [item for item in old.tolist() if item not in (3, -1)]
    near.remove(3)
    for place, item in enumerate(near):
        if item >= 10:
            expected.insert(place, item)
    assert found.items[0].tolist() == [*expected, -1]
    assert found.items[1].tolist() == [*range(10), -1, -1]  # nothing is near to nothing
