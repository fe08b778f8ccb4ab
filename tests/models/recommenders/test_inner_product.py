"""The exact lists of product codes equal brute force over codes, and the approximate search finds most of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.common.jagged import Jagged
from models.common.recommender import Recommended, best
from models.recommenders import next_item
from models.recommenders.inner_product import InnerProductIndex
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.product_quantizer import Quantized


def lists(values: list[list[int]]) -> Jagged:
    rows = [row for one in values for row in one]
    return Jagged(torch.tensor(rows, dtype=torch.int64), torch.tensor([0, *map(len, values)]).cumsum(0))


def drawn(users: int, items: int, codes: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codeword vectors and states of small whole numbers, so that equal scores are equal in any order of summing."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(-3, 4, (codes, size, 2 * codes), generator=random).float()
    return words, torch.randint(-2, 3, (users, 2 * codes), generator=random).float()


def brute(
    words: torch.Tensor, hidden: torch.Tensor, codes: torch.Tensor, k: int, banned: list[list[int]], allowed: list[bool]
) -> list[list[tuple[int, float]]]:
    """By loops: the sums of the logits of items' codes."""
    found = []
    for user, out in zip(hidden, banned, strict=True):
        scores = {
            item: sum(float(user @ words[place, code]) for place, code in enumerate(row))
            for item, row in enumerate(codes.tolist())
            if allowed[item] and item not in out
        }
        order = sorted(scores, key=lambda item: (-scores[item], item))[:k]
        found.append([(item, scores[item]) for item in order] + [(-1, -torch.inf)] * (k - len(order)))
    return found


def pairs(found: Recommended) -> list[list[tuple[int, float]]]:
    return [list(zip(*rows, strict=True)) for rows in zip(found.items.tolist(), found.scores.tolist(), strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(2, 12),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 14),
    st.sampled_from([2, 512]),
    st.data(),
)
def test_exact_lists_and_an_exhausting_search_equal_brute_force(
    users: int, items: int, codes: int, size: int, k: int, block: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 99))
    words, hidden = drawn(users, items, codes, size, seed)
    rows = torch.randint(size, (items, codes), generator=torch.Generator().manual_seed(seed))
    model = ProductCodes(
        ProductCodesConfig(dim=2 * codes, inner=4, heads=2, layers=1), Quantized(rows, torch.zeros(codes, size, 2))
    )
    model.codeword.data = words
    model.eval()
    banned = data.draw(st.lists(st.lists(st.integers(0, items - 1), max_size=4), min_size=users, max_size=users))
    allowed = data.draw(st.lists(st.booleans(), min_size=items, max_size=items))
    filters = {"banned": lists(banned), "allowed": torch.tensor(allowed)}
    right = brute(words, hidden, rows, k, banned, allowed)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_item, "USERS", block)
        patch.setattr(model, "_last", lambda histories: hidden[histories.values])
        found = model.recommend(lists([[user] for user in range(users)]), k=k, **filters)
        searched = InnerProductIndex(model.every_vector()).search(hidden, k=k, **filters)
    wanted = torch.tensor([[score for _, score in row] for row in right])
    torch.testing.assert_close(found.scores, wanted)
    torch.testing.assert_close(searched.scores, wanted)
    assert found.items.tolist() == [[item for item, _ in row] for row in right]
    for row, true in zip(pairs(searched), right, strict=True):
        scores = dict(true)  # which of equals are the last ones is open, but not their score
        assert row == sorted(row, key=lambda pair: (-pair[1], pair[0] if pair[0] >= 0 else items))
        assert all(item == -1 or scores.get(item, true[-1][1]) == score for item, score in row)


def catalogue(items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of items in clusters, by 8 codes of 16 codewords of 4 dimensions each; and of users near an item."""
    random = torch.Generator().manual_seed(2)
    codewords = torch.randn(8, 16, 4, generator=random)
    centres = torch.randn(items // 50, 8, 4, generator=random)
    vectors = centres.repeat(50, 1, 1) + 0.5 * torch.randn(len(centres) * 50, 8, 4, generator=random)
    codes = torch.einsum("nmd,mcd->nmc", vectors, codewords).argmax(2)
    items_ = torch.stack([codewords[place, codes[:, place]] for place in range(8)], dim=1)
    users = vectors[torch.randint(len(vectors), (70,), generator=random)]
    return items_.flatten(1), users.flatten(1)


def test_a_search_finds_most_of_the_best() -> None:
    vectors, users = catalogue(5000)
    found = InnerProductIndex(vectors).search(users, k=10)
    true = best(users @ vectors.T, k=10)
    share = (found.items[:, :, None] == true.items[:, None]).any(1).float().mean()
    assert share > 0.9
    torch.testing.assert_close(found.scores[:, 0], true.scores[:, 0])


def test_a_list_does_not_depend_on_the_others_asked_for() -> None:
    vectors, users = catalogue(1000)
    index = InnerProductIndex(vectors)
    together, alone = index.search(users, k=5), index.search(users[66:67], k=5)
    assert together.items[66].tolist() == alone.items[0].tolist()


def test_items_of_the_same_vector_are_found_together() -> None:
    vectors = torch.zeros(6, 2)
    vectors[:4, 0] = vectors[4:, 1] = 1
    found = InnerProductIndex(vectors).search(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), k=6)
    assert found.items.tolist() == [[0, 1, 2, 3, 4, 5], [4, 5, 0, 1, 2, 3]]


def test_the_best_items_are_found_behind_banned_ones() -> None:
    vectors = torch.linspace(-9, 0, 100)[:, None]
    found = InnerProductIndex(vectors).search(torch.ones(1, 1), k=3, banned=lists([[*range(60, 99)]]))
    assert found.items.tolist() == [[99, 59, 58]]
    allowed = torch.arange(100) % 2 == 0
    found = InnerProductIndex(vectors).search(torch.ones(1, 1), k=3, allowed=allowed)
    assert found.items.tolist() == [[98, 96, 94]]
    assert InnerProductIndex(vectors).search(torch.ones(0, 1), k=3, banned=lists([])).items.shape == (0, 3)


def test_neighbours_are_those_of_the_largest_product() -> None:
    """As vectors of length 1 they are the most alike, and each its own best."""
    random = torch.Generator().manual_seed(1)
    units = torch.nn.functional.normalize(torch.randn(300, 15, generator=random), dim=1)
    found = InnerProductIndex(units).search(units, k=9)
    assert torch.equal(found.items[:, 0], torch.arange(300))
    assert all(len(set(row)) == 9 for row in found.items.tolist())
    torch.testing.assert_close(found.scores, (units @ units.T).topk(9).values, rtol=1e-4, atol=1e-4)
