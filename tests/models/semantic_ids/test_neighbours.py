from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids import neighbours
from models.semantic_ids.neighbours import nearest_neighbours, neighbour_overlap

# vectors of length 1 or 2, so that every cosine is exact and equal ones tie
EXACT = torch.cat([torch.eye(4), -torch.eye(4), torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))])


def ranked(scores: list[float], k: int, *, without: int | None = None) -> list[int]:
    return sorted((i for i in range(len(scores)) if i != without), key=lambda i: (-scores[i], i))[:k]


def cosines(query: torch.Tensor, vectors: torch.Tensor) -> list[float]:
    return (vectors @ query / vectors.norm(dim=1) / query.norm()).tolist()


@given(
    st.lists(st.integers(0, len(EXACT) - 1), min_size=3, max_size=12), st.integers(1, 2), st.sampled_from([7, 10**6])
)
def test_neighbours_equal_brute_force_with_ties_by_lowest_index(picks: list[int], k: int, block_scores: int) -> None:
    vectors, rows = EXACT[picks], torch.arange(len(picks)).flip(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK_SCORES", block_scores)
        others = nearest_neighbours(vectors[rows], vectors, k, exclude=rows)
        anyone = nearest_neighbours(EXACT, vectors, k)
    assert others.dtype == torch.int64
    assert others.tolist() == [ranked(cosines(vectors[row], vectors), k, without=row) for row in rows.tolist()]
    assert anyone.tolist() == [ranked(cosines(query, vectors), k) for query in EXACT]


def mean_over_orders(scores: list[list[float]], truth: list[list[int]], rows: list[int], k: int) -> float:
    """The overlap by its definition: every order of the other items that their scores allow counts once."""
    shares = []
    for row, score, true in zip(rows, scores, truth, strict=True):
        others = [item for item in range(len(score)) if item != row]
        orders = [
            order
            for order in itertools.permutations(others)
            if all(score[before] >= score[after] for before, after in itertools.pairwise(order))
        ]
        shares.append(np.mean([len(set(order[:k]) & set(true)) / k for order in orders]))
    return float(np.mean(shares))


def shared(first: list[int], second: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=True)))


@given(
    st.lists(st.tuples(st.integers(0, len(EXACT) - 1), st.integers(0, 1), st.integers(0, 2)), min_size=2, max_size=6),
    st.integers(1, 4),
)
def test_overlap_is_the_mean_over_all_orders_of_ties(items: list[tuple[int, int, int]], k: int) -> None:
    vectors, codes = EXACT[[item[0] for item in items]], torch.tensor([item[1:] for item in items])
    table = EXACT[:6].reshape(2, 3, 4)  # what the six codes decode to
    rows, k_found = list(range(len(items)))[::-1], min(k, len(items) - 1)
    truth = [ranked(cosines(vectors[row], vectors), k_found, without=row) for row in rows]
    decoded = table[codes[:, 0], codes[:, 1]]
    overlap = neighbour_overlap(vectors, codes, lambda found: table[found[:, 0], found[:, 1]], torch.tensor(rows), k=k)
    by_prefix = [[float(shared(codes[row].tolist(), other)) for other in codes.tolist()] for row in rows]
    by_cosine = [cosines(decoded[row], decoded) for row in rows]
    assert overlap["prefix"] == pytest.approx(mean_over_orders(by_prefix, truth, rows, k_found))
    assert overlap["decoded"] == pytest.approx(mean_over_orders(by_cosine, truth, rows, k_found))


def test_overlap_of_lossless_codes_is_whole_and_of_one_code_is_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), torch.arange(0, 300, 3)
    numbers = torch.arange(300).unsqueeze(1)
    whole = neighbour_overlap(vectors, numbers, lambda codes: vectors[codes[:, 0]], rows)
    assert whole["decoded"] == 1.0
    nothing = neighbour_overlap(vectors, torch.zeros_like(numbers), lambda codes: vectors[:1], rows)
    assert nothing == {"prefix": pytest.approx(10 / 299), "decoded": pytest.approx(10 / 299)}
    monkeypatch.setattr(neighbours, "BLOCK_SCORES", 1_000)
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 7)
    assert neighbour_overlap(vectors, numbers, lambda codes: vectors[codes[:, 0]], rows) == pytest.approx(whole)


def test_an_item_alone_has_no_overlap() -> None:
    alone = neighbour_overlap(EXACT[:1], torch.zeros(1, 2), lambda codes: EXACT[:1], torch.tensor([0]))
    assert all(math.isnan(share) for share in alone.values())
