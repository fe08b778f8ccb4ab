from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rerank.lists import Limit, Listed, alike, explored, greedy, standardised

few = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, candidates: int, values: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Totals, unit vectors, and one value out of a few or none of each candidate."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(candidates, 4))
    value = random.integers(0, values + 1, candidates)
    has = value[:, None] == np.arange(values)
    return random.normal(size=candidates), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), has


@few
@given(seeds, st.integers(0, 12), st.integers(1, 8), st.floats(0, 1))
def test_mmr_equals_a_loop(seed, candidates, k, diversity) -> None:
    total, vectors, _ = drawn(seed, candidates)
    expected: list[int] = []
    for _ in range(min(k, candidates)):
        worth = {
            at: (1 - diversity) * total[at]
            - diversity * max((float(vectors[at] @ vectors[other]) for other in expected), default=-1.0)
            for at in range(candidates)
            if at not in expected
        }
        expected.append(max(worth, key=lambda at: worth[at]))
    found = greedy(total, k, pins={}, limits=[], diversity=diversity, vectors=vectors)
    assert found.at.tolist() == expected


@few
@given(seeds, st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_a_cap_is_exceeded_only_where_every_list_would(seed, candidates, k, most) -> None:
    total, _, has = drawn(seed, candidates)
    found = greedy(total, k, pins={}, limits=[Limit(has, most, k)]).at
    length = min(k, candidates)
    assert len(set(found.tolist())) == len(found) == length
    could = any(has[list(some)].sum(0).max() <= most for some in itertools.combinations(range(candidates), length))
    assert (has[found].sum(0).max() <= most) == could


@few
@given(seeds, st.integers(2, 4), st.integers(1, 2))
def test_a_cap_begins_anew_with_every_run_of_places(seed, of, most) -> None:
    total, _, has = drawn(seed, 60)
    found = greedy(total, 3 * of, pins={}, limits=[Limit(has, most, of)]).at
    for start in range(0, 3 * of, of):
        assert has[found[start : start + of]].sum(0).max() <= most


@few
@given(seeds, st.dictionaries(st.integers(0, 7), st.integers(0, 11), max_size=4), st.integers(0, 1))
def test_pins_are_at_their_places_and_count_for_caps(seed, wanted, capped) -> None:
    total, _, has = drawn(seed, 12)
    pins = {place: at for n, (place, at) in enumerate(wanted.items()) if at not in list(wanted.values())[:n]}
    found = greedy(total, 6, pins=pins, limits=[Limit(has, 4, 6)] * capped)
    assert {place: at for place, at in pins.items() if place < 6}.items() <= dict(enumerate(found.at)).items()
    assert found.pinned.tolist() == [place in pins for place in range(6)]
    others = [at for at, pinned in zip(found.at, found.pinned, strict=True) if not pinned]
    if not capped:
        assert (np.diff(total[others]) <= 0).all()


def test_where_candidates_end_pins_move_up() -> None:
    found = greedy(np.array([1.0, 2.0, 3.0]), 10, pins={5: 0}, limits=[])
    assert found.at.tolist() == [2, 1, 0]
    assert found.pinned.tolist() == [False, False, True]
    assert greedy(np.empty(0), 3, pins={}, limits=[Limit(np.empty((0, 0), bool), 1, 3)]).at.tolist() == []


@pytest.mark.parametrize(("candidates", "pinned"), [(30, 0), (7, 1), (5, 0)])
def test_propensities_are_the_shares_of_many_draws(candidates, pinned) -> None:
    """Six places; seven and five candidates leave fewer to draw than there are places."""
    total, _, has = drawn(3, candidates)
    limit = Limit(has, 2, 6)
    listed = greedy(total, 6, pins=dict.fromkeys(range(pinned), 0), limits=[limit])
    groups, random = alike([limit], candidates), np.random.default_rng(0)
    counts, told = np.zeros((candidates, 6)), np.full((candidates, 6), np.nan)
    draws = 6_000
    for _ in range(draws):
        at, propensity = explored(listed, 0.3, groups, random)
        assert len(set(at.tolist())) == len(at)
        assert sorted(groups[at]) == sorted(groups[listed.at])  # so that the cap holds
        places = np.arange(len(at))
        counts[at, places] += 1
        assert np.isclose(told[at, places], propensity)[~np.isnan(told[at, places])].all()
        told[at, places] = propensity
    shares = counts / draws
    np.testing.assert_allclose(np.nan_to_num(told), shares, atol=0.03)
    np.testing.assert_allclose(np.nansum(told, 0)[: len(listed.at)], 1)
    assert (told[0, :pinned] == 1).all()


def test_nothing_is_drawn_without_a_share_and_the_same_seed_draws_the_same() -> None:
    listed, groups = Listed(np.arange(5), np.zeros(5, bool)), np.zeros(20, np.int64)
    at, propensity = explored(listed, 0.0, groups, np.random.default_rng(1))
    assert at.tolist() == [0, 1, 2, 3, 4]
    assert propensity.tolist() == [1.0] * 5
    first, second = (explored(listed, 0.5, groups, np.random.default_rng(1))[0].tolist() for _ in range(2))
    assert first == second != at.tolist()


def test_standardised() -> None:
    np.testing.assert_allclose(standardised(np.array([1.0, 3.0, np.nan])), [-1, 1, 0])
    assert standardised(np.array([2.0, 2.0])).tolist() == [0, 0]
    assert standardised(np.full(2, np.nan)).tolist() == [0, 0]
    assert standardised(np.empty(0)).tolist() == []
