from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import Recommended, best
from models.recommenders import graph
from models.recommenders.graph import build_graph, exact, search


def drawn(users: int, items: int, digits: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities that are quarters, so that equal scores are equal in any order of summing; and codes."""
    random = torch.Generator().manual_seed(seed)
    logp = -torch.randint(8, (users, digits, size), generator=random) / 4
    return logp, torch.randint(size, (items, digits), generator=random, dtype=torch.int32)


def lists(values: list[list[int]]) -> Jagged:
    rows = [row for one in values for row in one]
    return Jagged(torch.tensor(rows, dtype=torch.int64), torch.tensor([0, *map(len, values)]).cumsum(0))


def brute(
    logp: torch.Tensor, codes: torch.Tensor, k: int, banned: list[list[int]], allowed: list[bool]
) -> list[list[tuple[int, float]]]:
    found = []
    for user, out in zip(logp, banned, strict=True):
        scores = {
            item: sum(float(user[digit, code]) for digit, code in enumerate(row))
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
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 14),
    st.sampled_from([2, 64]),
    st.data(),
)
def test_exact_and_an_exhausting_search_equal_brute_force(
    users: int, items: int, digits: int, size: int, k: int, block: int, data: st.DataObject
) -> None:
    logp, codes = drawn(users, items, digits, size, data.draw(st.integers(0, 99)))
    banned = data.draw(st.lists(st.lists(st.integers(0, items - 1), max_size=4), min_size=users, max_size=users))
    allowed = data.draw(st.lists(st.booleans(), min_size=items, max_size=items))
    filters = {"banned": lists(banned), "allowed": torch.tensor(allowed)}
    circle = (torch.arange(items)[:, None] + torch.tensor([1, items - 1])) % items
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "USERS", block)
        found = best(exact(logp, codes), k=k, **filters)
        walked = search(logp, codes, circle.int(), k=k, beams=2, steps=items, starts=2, **filters)
    right = [[(item, score) for item, score in row] for row in brute(logp, codes, k, banned, allowed)]
    # which of equals are the last ones is open, but not their score
    assert [[score for _, score in row] for row in pairs(found)] == [[score for _, score in row] for row in right]
    for row, true in zip(pairs(found), right, strict=True):
        scores = dict(true)
        assert row == sorted(row, key=lambda pair: (-pair[1], pair[0] if pair[0] >= 0 else items))
        assert all(item == -1 or scores.get(item, true[-1][1]) == score for item, score in row)
    assert [[score for _, score in row] for row in pairs(walked.best)] == [[score for _, score in row] for row in right]
    assert (walked.scored == items).all()


def test_neighbours_are_those_of_the_most_alike_codewords() -> None:
    random = torch.Generator().manual_seed(1)
    codewords = torch.randn(5, 7, 3, generator=random) * torch.tensor([0.1, 1, 9, 1, 1, 5, 1])[:, None]
    codes = torch.randint(7, (300, 5), generator=random)
    found = build_graph(codes, codewords, 8)
    units = functional.normalize(codewords, dim=2)
    vectors = torch.cat([units[digit, codes[:, digit]] for digit in range(5)], dim=1)
    alike = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    assert found.dtype == torch.int32
    assert (found != torch.arange(300)[:, None]).all()
    assert all(len(set(row)) == 8 for row in found.tolist())
    torch.testing.assert_close(alike.gather(1, found.long()), alike.topk(8).values, rtol=1e-4, atol=1e-4)


def test_items_of_the_same_codes_are_neighbours_and_none_is_its_own() -> None:
    codes = torch.zeros(6, 2, dtype=torch.int32)
    codes[4:] = 1
    found = build_graph(codes, torch.eye(2).expand(2, 2, 2), 9)
    assert found.shape == (6, 5)
    assert [sorted(row[:3]) for row in found[:4].tolist()] == [[j for j in range(4) if j != i] for i in range(4)]
    assert found[4:, 0].tolist() == [5, 4]


def catalogue(items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Items in clusters, by 8 digits of 16 codes; users near an item: log-probabilities, codes and codewords."""
    random = torch.Generator().manual_seed(2)
    codewords = torch.randn(8, 16, 4, generator=random)
    centres = torch.randn(items // 50, 8, 4, generator=random)
    vectors = centres.repeat(50, 1, 1) + 0.5 * torch.randn(len(centres) * 50, 8, 4, generator=random)
    codes = torch.einsum("nmd,mcd->nmc", vectors, codewords).argmax(2)
    users = vectors[torch.randint(len(vectors), (70,), generator=random)]
    return torch.einsum("bmd,mcd->bmc", users, codewords).log_softmax(2), codes, codewords


def test_a_search_scores_few_items_and_finds_most_of_the_best() -> None:
    logp, codes, codewords = catalogue(5000)
    found = search(logp, codes, build_graph(codes, codewords, 16), k=10, beams=16, steps=6, starts=256)
    true = best(exact(logp, codes), k=10)
    share = (found.best.items[:, :, None] == true.items[:, None]).any(1).float().mean()
    assert share > 0.9
    assert found.scored.float().mean() < 1500


def test_a_list_does_not_depend_on_the_others_asked_for() -> None:
    logp, codes, codewords = catalogue(1000)
    neighbours = build_graph(codes, codewords, 8)
    together = search(logp, codes, neighbours, k=5, beams=4, steps=3, starts=32)
    alone = search(logp[66:67], codes, neighbours, k=5, beams=4, steps=3, starts=32)
    assert together.best.items[66].tolist() == alone.best.items[0].tolist()
    assert together.scored[66] == alone.scored[0]


def test_filters_are_walked_through() -> None:
    """The best items of a user lie behind banned ones, which are the only ones that lead there."""
    codes = torch.arange(100)[:, None]
    logp = torch.linspace(-9, 0, 100)[None, None]
    line = (torch.arange(100)[:, None] + torch.tensor([-1, 1])).clamp(0, 99).int()
    found = search(logp, codes, line, k=3, beams=1, steps=99, starts=3, banned=lists([[*range(60, 99)]]))
    assert found.best.items.tolist() == [[99, 59, 58]]
