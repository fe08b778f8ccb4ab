from __future__ import annotations

import itertools
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common import recommender
from models.common.jagged import Jagged
from models.common.recommender import Recommended, best, masked_and_not, recommend_blocks, top_columns
from models.recommenders.inner_product import InnerProductIndex
from models.recommenders.popularity import MostPopular

scores_ = st.integers(1, 12).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([-torch.inf, -1.5, 0.0, 2.0]), min_size=n, max_size=n), min_size=1, max_size=4
    )
)


@given(scores=scores_, k=st.integers(1, 15))
def test_of_equal_scores_the_lower_rows_are_the_best(scores, k):
    found = best(torch.tensor(scores), k=k)
    for row, items, values in zip(scores, found.items.tolist(), found.scores.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda item: (-row[item], item))
        order = [item for item in ranked if row[item] > -torch.inf]
        expected = order[:k] + [-1] * (k - len(order))
        assert items == expected
        assert values == [row[item] if item >= 0 else -torch.inf for item in expected]


@given(scores=scores_, count=st.integers(1, 15))
def test_the_best_of_what_is_not_kept_is_told(scores, count):
    columns, dropped = top_columns(torch.tensor(scores), count)
    for row, kept, rest in zip(scores, columns.tolist(), dropped.tolist(), strict=True):
        assert kept == sorted(set(kept))
        assert len(kept) == min(count, len(row))
        others = [value for column, value in enumerate(row) if column not in kept]
        assert rest == max(others, default=-torch.inf)
        assert min(row[column] for column in kept) >= rest


def test_nobody_gets_what_is_banned_or_not_allowed():
    found = best(
        torch.arange(5.0).repeat(2, 1),
        k=2,
        banned=Jagged(torch.tensor([4, 2]), torch.tensor([0, 1, 2])),
        allowed=torch.tensor([True, True, True, False, True]),
    )
    assert found.items.tolist() == [[2, 1], [4, 1]]


@pytest.mark.parametrize("users", [0, 1, 4, 9])
def test_blocks_are_one_list_of_lists(monkeypatch, users):
    monkeypatch.setattr(recommender, "BLOCK", 4)
    lengths = torch.arange(users) % 3
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    histories = Jagged(torch.arange(int(offsets[-1])) % 8, offsets)
    model = MostPopular(torch.tensor([0, 3, 1, 4, 1, 5, 9, 2]))
    found = recommender.recommended(model, histories, k=3, banned=histories)
    assert found.tolist() == model.recommend(histories, k=3, banned=histories).items.tolist()
    assert found.shape == (users, 3)


class Scored:
    """Scores of all items for each user, whose number is the one item of the history."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores, self.asked = scores, 0

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        self.asked += 1
        return best(self.scores[histories.values], k=k, banned=banned, allowed=allowed)


class Indexed(Scored):
    """The same scores, as products with one-hot vectors, by an index."""

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        index = InnerProductIndex(self.scores.T)
        return index.search(torch.eye(len(self.scores))[histories.values], k=k, banned=banned, allowed=allowed)


def jagged(rows: Sequence[Sequence[int]]) -> Jagged:
    values = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
    return Jagged(values, torch.tensor([0, *map(len, rows)]).cumsum(0))


@pytest.mark.parametrize("kind", [Scored, Indexed])
@given(seed=st.integers(0, 1000), users=st.integers(0, 9), items=st.integers(1, 12), k=st.integers(1, 15))
def test_masked_lists_and_the_others_are_those_of_two_calls(kind, seed, users, items, k):
    random = np.random.default_rng(seed)
    scores = random.choice([-1.5, 0.0, 2.0] + ([-np.inf] if kind is Scored else []), size=(users, items))
    model = kind(torch.tensor(scores, dtype=torch.float32))
    seen = jagged([random.integers(items, size=random.integers(2 * items)).tolist() for _ in range(users)])
    histories = Jagged(torch.arange(users), torch.arange(users + 1))
    with patch.object(recommender, "BLOCK", 4):
        both = masked_and_not(model, histories, k=k, banned=seen)
        assert kind is Indexed or model.asked == max(1, -(-users // 4))
        wanted = [recommend_blocks(model, histories, k=k, banned=banned) for banned in (seen, None)]
    for found, expected in zip(both, wanted, strict=True):
        assert torch.equal(found.items, expected.items)
        assert torch.equal(found.scores, expected.scores)
        assert (found.exact is None) == (expected.exact is None)
