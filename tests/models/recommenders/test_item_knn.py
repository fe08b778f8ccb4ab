from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common.jagged import Jagged
from models.common.recommender import Queries
from models.recommenders import item_knn
from models.recommenders.artifacts import load
from models.recommenders.item_knn import ItemKnn, fit_item_knn, nearest
from models.recommenders.settings import ItemKnnSettings

ITEMS = 9
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=6), min_size=1, max_size=6)


def as_lists(rows: list[list[int]]) -> Jagged:
    values = torch.tensor([item for row in rows for item in row], dtype=torch.int64)
    return Jagged(values, torch.tensor(np.cumsum([0, *map(len, rows)])))


def brute_similarity(sequences: list[list[int]], width: int, shrinkage: float) -> np.ndarray:
    """Similarities by a loop over pairs; only those to an item's nearest `width` others."""
    users = [{user for user, row in enumerate(sequences) if item in row} for item in range(ITEMS)]
    found = np.zeros((ITEMS, ITEMS))
    for one in range(ITEMS):
        for other in range(ITEMS):
            if one != other and (both := len(users[one] & users[other])):
                found[one, other] = both / (np.sqrt(len(users[one]) * len(users[other])) + shrinkage)
        found[one, np.argsort(-found[one], kind="stable")[width:]] = 0
    return found


@given(LISTS, LISTS, st.sampled_from([1, 3, 20]), st.sampled_from([0.0, 2.5]), st.sampled_from([0.0, 0.5, 1.0]))
def test_scores_are_sums_of_shrunken_cosines_to_the_nearest_items(sequences, histories, width, shrinkage, decay):
    similar = brute_similarity(sequences, width, shrinkage)
    model = ItemKnn(*nearest(as_lists(sequences), ITEMS, width=width, shrinkage=shrinkage), decay, shrinkage)
    found = model.recommend(as_lists(histories), k=4, banned=as_lists(histories))
    for history, items, scores in zip(histories, found.items.tolist(), found.scores.tolist(), strict=True):
        expected = sum((decay**age * similar[item] for age, item in enumerate(history[::-1])), np.zeros(ITEMS))
        expected[history] = 0
        best = np.sort(expected[expected > 0])[::-1][:4]
        assert items[len(best) :] == [-1] * (4 - len(best))
        np.testing.assert_allclose(scores[: len(best)], best, rtol=1e-5)
        np.testing.assert_allclose(expected[items[: len(best)]], best, rtol=1e-5)


def test_blocks_of_items_and_of_users_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    rows = [random.integers(0, 50, random.integers(0, 12)).tolist() for _ in range(80)]
    whole = nearest(as_lists(rows), 50, width=7, shrinkage=1)
    lists = ItemKnn(*whole, 0.5, 1).recommend(as_lists(rows), k=5)
    monkeypatch.setattr(item_knn, "COUNTED", 40)
    monkeypatch.setattr(item_knn, "BLOCK", 3)
    parts = nearest(as_lists(rows), 50, width=7, shrinkage=1)
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))
    again = ItemKnn(*whole, 0.5, 1).recommend(as_lists(rows), k=5)
    assert torch.equal(lists.items, again.items)


def test_an_item_outside_of_the_allowed_ones_is_not_recommended():
    model = ItemKnn(*nearest(as_lists([[0, 1, 2], [1, 2, 3]]), 4, width=3, shrinkage=0), 1.0, 0)
    allowed = torch.tensor([True, False, True, False])
    assert model.recommend(as_lists([[1], []]), k=3, allowed=allowed).items.tolist() == [[2, 0, -1], [-1] * 3]


@pytest.mark.parametrize(("place", "decays"), [(-1, {0.0, 0.3}), (0, {0.7, 0.85, 1.0})])
def test_validation_chooses_what_tells_the_next_item_and_the_artifact_keeps_it(place, decays, tmp_path):
    """What comes next was always chosen with the last item of a history, or with its first, which is often in it."""
    random = np.random.default_rng(0)
    sequences = [[item, 30 + item] for item in range(30) for _ in range(3)]
    histories = [
        [first] * 6 + [int(last) for last in others]
        for first, others in zip(random.permutation(30), random.integers(0, 30, (30, 2)), strict=True)
    ]
    target = torch.tensor([30 + history[place] for history in histories])
    valid = Queries(np.arange(30), as_lists(histories), target, as_lists(histories))
    model = fit_item_knn(ItemKnnSettings(), as_lists(sequences), 60, valid, filter_seen=True)
    assert model.decay in decays
    found = model.recommend(valid.histories, k=1, banned=valid.seen).items[:, 0]
    assert (found == target).float().mean() > 0.9
    model.save(str(tmp_path))
    loaded = load(str(tmp_path))
    assert isinstance(loaded, ItemKnn)
    assert (loaded.decay, loaded.shrinkage) == (model.decay, model.shrinkage)
    assert torch.equal(loaded.neighbours, model.neighbours)
    assert torch.equal(loaded.recommend(valid.histories, k=3).items, model.recommend(valid.histories, k=3).items)


def test_one_noisy_user_in_common_counts_for_less_with_shrinkage():
    sequences = as_lists([[0, 1]] + [[0, 2, 3]] * 20 + [[2, 4]] * 30)
    plain, shrunken = (nearest(sequences, 5, width=1, shrinkage=shrinkage)[0] for shrinkage in (0, 100))
    assert plain[1].tolist() == shrunken[1].tolist() == [0]
    rare = as_lists([[0, 1]] + [[0, 2]] * 3 + [[2]] * 40)
    assert [nearest(rare, 3, width=1, shrinkage=by)[0][0].item() for by in (0, 100)] == [1, 2]
