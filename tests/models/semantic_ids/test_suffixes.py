from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.suffixes import allocate_suffixes, sid_string
from storage.errors import UserError
from storage.hashing import content_order

Catalogue = dict[str, tuple[tuple[int, int], int]]  # id -> codes, content

items = st.tuples(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(0, 4))
catalogues = st.dictionaries(st.text(max_size=6), items, min_size=1, max_size=30)


def allocate(catalogue: Catalogue, known: dict[str, tuple[int, ...]] | None = None, **settings) -> dict[str, int]:
    """The suffixes of a catalogue beside items that have their semantic IDs."""
    suffixes = allocate_suffixes(
        list(catalogue),
        np.array([codes for codes, _ in catalogue.values()], np.int32).reshape(-1, 2),
        np.array([content for _, content in catalogue.values()], np.uint64),
        known_ids=list(known or {}),
        known_codes=np.array(list((known or {}).values()), np.int32).reshape(-1, 3),
        **settings,
    )
    assert suffixes.dtype == np.int32
    return dict(zip(catalogue, suffixes.tolist(), strict=True))


@settings(deadline=None, max_examples=40)
@given(catalogues)
def test_colliding_items_count_up_from_zero_and_the_others_have_no_suffix(catalogue: Catalogue) -> None:
    suffixes = allocate(catalogue)
    for prefix in {codes for codes, _ in catalogue.values()}:
        under = sorted(suffixes[item] for item, (codes, _) in catalogue.items() if codes == prefix)
        assert under == ([-1] if len(under) == 1 else list(range(len(under))))


@settings(deadline=None, max_examples=40)
@given(catalogues)
def test_always_gives_every_item_a_suffix(catalogue: Catalogue) -> None:
    suffixes = allocate(catalogue, always=True)
    assert suffixes == {item: max(suffix, 0) for item, suffix in allocate(catalogue).items()}


@settings(deadline=None, max_examples=40)
@given(catalogues, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(catalogue: Catalogue, random) -> None:
    shuffled = list(catalogue)
    random.shuffle(shuffled)
    assert allocate({item: catalogue[item] for item in shuffled}) == allocate(catalogue)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30), st.data())
def test_renamed_items_keep_their_suffixes(codes: list[tuple[int, int]], data: st.DataObject) -> None:
    names = st.lists(st.text(max_size=6), min_size=len(codes), max_size=len(codes), unique=True)
    before, after = data.draw(names), data.draw(names)
    contents = [(prefix, content) for content, prefix in enumerate(codes)]
    old, new = (allocate(dict(zip(ids, contents, strict=True))) for ids in (before, after))
    assert [old[name] for name in before] == [new[name] for name in after]


@settings(deadline=None, max_examples=40)
@given(catalogues)
def test_suffixes_go_by_content(catalogue: Catalogue) -> None:
    alike = {item: ((0, 0), content) for item, (_, content) in catalogue.items()}
    order = content_order(np.array([content for _, content in alike.values()], np.uint64), list(alike))
    suffixes = allocate(alike)
    ordered = [suffixes[list(alike)[at]] for at in order]
    assert ordered == sorted(suffixes.values())


@settings(deadline=None, max_examples=40)
@given(st.lists(catalogues, min_size=1, max_size=4), st.booleans())
def test_known_items_never_move_and_new_ones_never_collide(arrivals: list[Catalogue], always: bool) -> None:
    given_ids: dict[tuple[str, tuple[int, int]], tuple[int, ...]] = {}  # (id, codes) -> codes and suffix
    for catalogue in arrivals:
        # of an id that came twice, with other codes, both semantic IDs stay given
        known_ids = [item for item, _ in given_ids]
        known_codes = np.array(list(given_ids.values()), np.int32).reshape(-1, 3)
        codes = np.array([codes for codes, _ in catalogue.values()], np.int32)
        contents = np.array([content for _, content in catalogue.values()], np.uint64)
        suffixes = allocate_suffixes(
            list(catalogue), codes, contents, always=always, known_ids=known_ids, known_codes=known_codes
        )
        for (item, (prefix, _)), suffix in zip(catalogue.items(), suffixes.tolist(), strict=True):
            sid = (*prefix, suffix)
            assert given_ids.setdefault((item, prefix), sid) == sid
        assert len(set(given_ids.values())) == len(given_ids)


def test_an_item_that_joins_one_without_a_suffix_gets_the_first() -> None:
    known = {"a": (1, 1, -1)}
    assert allocate({"b": ((1, 1), 0)}, known) == {"b": 0}
    assert allocate({"a": ((1, 1), 1), "b": ((1, 1), 0)}, known) == {"a": -1, "b": 0}
    assert allocate({"c": ((1, 1), 0)}, {**known, "b": (1, 1, 0)}) == {"c": 1}
    assert allocate({"b": ((1, 2), 0)}, known) == {"b": -1}


def test_a_gap_is_not_filled() -> None:
    assert allocate({"b": ((1, 1), 0)}, {"a": (1, 1, 4)}) == {"b": 5}  # 0 to 3 may be gone, but were given once


def test_a_full_prefix_names_the_codes_and_the_remedy() -> None:
    catalogue = {name: ((4, 2), content) for content, name in enumerate("abcd")}
    assert sorted(allocate(catalogue, max_suffixes=4).values()) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"^4 items share the codes <a_4><b_2> \('a', 'b', 'c', .*codebook_sizes"):
        allocate(catalogue, max_suffixes=3)


def test_a_prefix_full_of_copies_says_so() -> None:
    catalogue = {"other": ((4, 2), 9), **dict.fromkeys("abcd", ((4, 2), 7))}
    with pytest.raises(UserError, match=r"^4 items with one and the same embedding share the codes <a_4><b_2>"):
        allocate(catalogue, max_suffixes=3)
    with pytest.raises(UserError, match=r"^5 items share"):  # larger codebooks part the other from the copies
        allocate(catalogue, max_suffixes=4)


def test_a_prefix_that_arrivals_fill_is_told_and_what_was_given_is_not() -> None:
    known = {"a": (1, 1, 0), "b": (1, 1, 300)}
    assert allocate({"b": ((1, 1), 0)}, known) == {"b": 300}  # given under a larger max_suffixes
    with pytest.raises(UserError, match=r"^3 items share the codes <a_1><b_1> \('c', \.\.\.\)"):
        allocate({"c": ((1, 1), 0)}, known)


def test_a_spelled_semantic_id_has_a_token_per_level_and_one_for_a_suffix() -> None:
    assert sid_string([12, 3, 7, 0]) == "<a_12><b_3><c_7><d_0>"
    assert sid_string([12, 3, 7, -1]) == "<a_12><b_3><c_7>"
