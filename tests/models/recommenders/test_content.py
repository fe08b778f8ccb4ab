from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common import recommender
from models.common.jagged import Jagged
from models.common.recommender import best
from models.recommenders import content
from models.recommenders.content import (
    POPULARITY_WEIGHTS,
    Content,
    content_and_popularity,
    fit_content,
    fit_popularity_weight,
    normalise,
)

ITEMS = 9
HISTORIES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=5), min_size=1, max_size=5)


def as_lists(rows: list[list[int]]) -> Jagged:
    values = torch.tensor([item for row in rows for item in row], dtype=torch.int64)
    return Jagged(values, torch.tensor(np.cumsum([0, *map(len, rows)])))


def brute(embeddings: np.ndarray, history: list[int], decay: float) -> np.ndarray:
    """Scores of all items by a loop over pairs."""
    z = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return np.array(
        [sum(decay**age * float(z[item] @ z[past]) for age, past in enumerate(history[::-1])) for item in range(ITEMS)]
    )


@given(HISTORIES, st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3))
def test_scores_are_sums_of_cosines_and_lists_hold_the_highest(histories, decay, seed):
    embeddings = np.random.default_rng(seed).normal(size=(ITEMS, 4)).astype(np.float32)
    model = Content(normalise(torch.tensor(embeddings)), decay)
    found = model.recommend(as_lists(histories), k=4, banned=as_lists(histories))
    for history, items, scores in zip(histories, found.items.tolist(), found.scores.tolist(), strict=True):
        if not history:
            assert items == [-1] * 4
            continue
        expected = brute(embeddings, history, decay)
        left = [item for item in range(ITEMS) if item not in history]
        np.testing.assert_allclose(scores, np.sort(expected[left])[::-1][:4], atol=1e-5)
        np.testing.assert_allclose(expected[items], scores, atol=1e-5)
        assert not set(items) & set(history)


def test_an_item_outside_of_the_allowed_ones_is_not_recommended():
    model = Content(normalise(torch.eye(4)), 1.0)
    allowed = torch.tensor([True, False, True, False])
    found = model.recommend(as_lists([[0], [1, 3]]), k=4, allowed=allowed)
    assert [set(row) for row in found.items.tolist()] == [{0, 2, -1}, {0, 2, -1}]


@pytest.mark.parametrize(("place", "decays"), [(-1, {0.0}), (0, {0.7, 0.85, 1.0})])
def test_the_decay_follows_what_tells_the_next_item(place, decays):
    """Twins of one item of the history come next: of the last, or of the first, which is in it many times."""
    random = np.random.default_rng(0)
    half = random.normal(size=(30, 16))
    embeddings = torch.tensor(np.concatenate([half, half + 0.01 * random.normal(size=half.shape)]), dtype=torch.float32)
    histories = [
        [first] * 6 + [int(last) for last in others]
        for first, others in zip(random.permutation(30), random.integers(0, 30, (30, 2)), strict=True)
    ]
    target = torch.tensor([30 + history[place] for history in histories])
    model = fit_content(embeddings, as_lists(histories), target, banned=as_lists(histories))
    assert model.decay in decays
    found = model.recommend(as_lists(histories), k=1, banned=as_lists(histories)).items[:, 0]
    assert (found == target).float().mean() > 0.9


def brute_with_popularity(
    embeddings: np.ndarray, popularity: np.ndarray, weight: float, history: list[int], seen: list[int], k: int
) -> list[int]:
    z = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    user = z[history].mean(0) if history else np.zeros(z.shape[1])
    rank = np.argsort(np.argsort(-popularity, kind="stable"), kind="stable")
    scores = z @ (user / max(np.linalg.norm(user), 1e-12)) + weight * (1 - rank / (len(rank) - 1))
    order = [int(i) for i in np.argsort(-scores, kind="stable") if i not in seen][:k]
    return order + [-1] * (k - len(order))


@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_candidates_are_those_of_the_cosine_to_the_mean_and_of_the_popularity(weight: float) -> None:
    random = np.random.default_rng(0)
    embeddings, popularity = random.normal(size=(20, 5)).astype(np.float32), random.random(20)
    histories = [[1, 2], [], [3], [4, 4, 5], list(range(18)), [], [7]]
    seen = [[1, 2, 9], [0], [], [4, 5], list(range(18)), [], [7]]
    model = content_and_popularity(torch.tensor(embeddings), torch.tensor(popularity), weight)
    found = model.recommend(as_lists(histories), k=4, banned=as_lists(seen)).items
    wanted = [
        brute_with_popularity(embeddings, popularity, weight, h, s, 4) for h, s in zip(histories, seen, strict=True)
    ]
    assert found.tolist() == wanted


def test_who_has_no_history_gets_the_popular_items_also_beyond_the_catalogue() -> None:
    model = content_and_popularity(torch.eye(3), torch.tensor([1.0, 3, 2]), 1.0)
    assert model.recommend(as_lists([[]]), k=9).items.tolist() == [[1, 2, 0, *[-1] * 6]]


@pytest.mark.parametrize("bonus", [None, torch.linspace(1, 0, 20)])
def test_few_scores_are_held_at_once_and_that_changes_nothing(monkeypatch, bonus) -> None:
    random = np.random.default_rng(0)
    histories = as_lists([random.integers(0, 20, random.integers(0, 5)).tolist() for _ in range(9)])
    model = Content(normalise(torch.tensor(random.normal(size=(20, 5)), dtype=torch.float32)), 0.5, bonus)
    whole, held = model.recommend(histories, k=4, banned=histories), []
    monkeypatch.setattr(content, "best", lambda scores, **given: (held.append(len(scores)), best(scores, **given))[1])
    monkeypatch.setattr(recommender, "BLOCK_VALUES", 50)
    found = model.recommend(histories, k=4, banned=histories)
    assert held == [2, 2, 2, 2, 1]
    assert torch.equal(found.items, whole.items)
    torch.testing.assert_close(found.scores, whole.scores)


def test_no_user_gets_no_list() -> None:
    model = content_and_popularity(torch.eye(3), torch.tensor([1.0, 3, 2]), 1.0)
    assert model.recommend(as_lists([]), k=2, banned=as_lists([])).items.shape == (0, 2)


def test_the_weight_of_popularity_follows_what_tells_the_next_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin of the history's item comes next, which nobody else chose; or what all choose."""
    monkeypatch.setattr(content, "RETRIEVED", 5)
    random = np.random.default_rng(0)
    half = random.normal(size=(100, 16))
    embeddings = torch.tensor(np.concatenate([half, half + 0.1 * random.normal(size=half.shape)]), dtype=torch.float32)
    histories = as_lists([[item] for item in range(100)])
    popularity = torch.arange(200).flip(0)
    twins, popular = torch.arange(100, 200), torch.tensor(random.integers(0, 6, 100))
    chosen = [fit_popularity_weight(embeddings, popularity, histories, to, banned=histories) for to in (twins, popular)]
    assert chosen == [min(POPULARITY_WEIGHTS), max(POPULARITY_WEIGHTS)]
    nothing = as_lists([])
    assert fit_popularity_weight(embeddings, popularity, nothing, twins[:0], banned=nothing) == 1.0
