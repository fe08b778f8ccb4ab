from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids import collisions
from models.semantic_ids.collisions import reassign_last_level
from models.semantic_ids.prefixes import number_rows
from storage.hashing import content_order, hash_rows

CODEWORDS = 8


class Catalogue:
    """Items with two levels of codes, the last one the nearest of 8 codewords to residuals float32 [N, 3]."""

    def __init__(self, seed: int, count: int, *, prefixes: int = 4, distinct: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        residuals = rng.standard_normal((distinct or count, 3)).astype(np.float32)
        self.residuals = residuals[rng.integers(0, len(residuals), count)] if distinct else residuals
        self.codebook = torch.from_numpy(rng.standard_normal((CODEWORDS, 3)).astype(np.float32))
        self.ids = [f"item-{i}" for i in range(count)]
        every = self.distances(np.arange(count))
        self.codes = np.column_stack([rng.integers(0, prefixes, count), every.argmin(1).numpy()]).astype(np.int32)

    def distances(self, rows: np.ndarray) -> torch.Tensor:
        """Squared distances of some residuals to the codebook."""
        return (torch.from_numpy(self.residuals)[rows, None] - self.codebook).square().sum(2)

    def order(self) -> np.ndarray:
        """The items by content."""
        return content_order(hash_rows(self.residuals), self.ids)

    def reassigned(self) -> np.ndarray:
        """Codes after reassignment."""
        return reassign_last_level(self.codes, self.distances, self.order())

    def taken(self, rows: np.ndarray, ids: list[str]) -> Catalogue:
        """The items at some rows, under other names."""
        other = Catalogue.__new__(Catalogue)
        other.residuals, other.codes, other.codebook, other.ids = (
            self.residuals[rows],
            self.codes[rows],
            self.codebook,
            ids,
        )
        return other


catalogues = st.builds(
    Catalogue, st.integers(0, 10_000), st.integers(1, 40), prefixes=st.integers(1, 9), distinct=st.none() | st.just(5)
)


def colliding(codes: np.ndarray) -> np.ndarray:
    """Which rows share all their codes with another, bool [N]."""
    numbers = number_rows(codes)
    return np.bincount(numbers)[numbers] > 1


@settings(deadline=None, max_examples=15)
@given(catalogues)
def test_lone_items_stay_and_nothing_joins_them(catalogue: Catalogue) -> None:
    before = catalogue.codes.copy()
    after = catalogue.reassigned()
    assert (catalogue.codes == before).all()
    assert (after[:, 0] == before[:, 0]).all()
    assert after.min() >= 0
    assert after[:, 1].max() < CODEWORDS
    alone = ~colliding(before)
    assert (after[alone] == before[alone]).all()
    assert not colliding(after)[alone].any()


@settings(deadline=None, max_examples=15)
@given(catalogues)
def test_items_collide_afterwards_only_where_codewords_or_rounds_ran_out(catalogue: Catalogue) -> None:
    after = catalogue.reassigned()
    still = colliding(after)
    for prefix in np.unique(after[:, 0]):
        under = after[:, 0] == prefix
        if under.sum() <= min(CODEWORDS, collisions.ROUNDS):
            assert not still[under].any()
        else:  # every codeword has an item, or what is left over shares one
            assert len(np.unique(after[under, 1])) >= min(CODEWORDS, collisions.ROUNDS)


@settings(deadline=None, max_examples=15)
@given(catalogues, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(catalogue: Catalogue, random) -> None:
    rows = np.array(random.sample(range(len(catalogue.ids)), len(catalogue.ids)))
    shuffled = catalogue.taken(rows, [catalogue.ids[row] for row in rows])
    assert (shuffled.reassigned() == catalogue.reassigned()[rows]).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_names_of_distinct_items_do_not_matter(seed: int, random) -> None:
    catalogue = Catalogue(seed, 30)
    names = random.sample(catalogue.ids, len(catalogue.ids))
    assert (catalogue.taken(np.arange(30), names).reassigned() == catalogue.reassigned()).all()


def test_copies_part_to_the_nearest_codewords() -> None:
    catalogue = Catalogue(3, 4, prefixes=1, distinct=1)
    after, nearest = catalogue.reassigned(), catalogue.distances(np.array([0]))[0].argsort()
    assert sorted(after[:, 1].tolist()) == sorted(nearest[:4].tolist())


@pytest.mark.parametrize("seed", range(20))
def test_items_stay_as_near_as_they_can(seed: int) -> None:
    catalogue = Catalogue(seed, 5, prefixes=1)
    catalogue.codes[:] = 0  # all five collide, and every codeword is free
    distances = catalogue.distances(np.arange(5)).numpy()
    best = min(distances[np.arange(5), list(chosen)].sum() for chosen in permutations(range(CODEWORDS), 5))
    assert distances[np.arange(5), catalogue.reassigned()[:, 1]].sum() == pytest.approx(best, rel=0.05)


def test_rounds_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collisions, "ROUNDS", 3)
    catalogue = Catalogue(3, 6, prefixes=1, distinct=1)  # copies: one finds its place in each round
    after = catalogue.reassigned()[catalogue.order(), 1]
    assert len(set(after[:3])) == 3
    assert (after[3:] == catalogue.codes[0, 1]).all()


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(0, 300, prefixes=60)
    whole = catalogue.reassigned()
    monkeypatch.setattr(collisions, "BLOCK_ROWS", 4)
    assert (catalogue.reassigned() == whole).all()


def test_one_level_is_enough() -> None:
    catalogue = Catalogue(0, 6)
    after = reassign_last_level(catalogue.codes[:, 1:], catalogue.distances, catalogue.order())
    assert len(np.unique(after)) == 6
