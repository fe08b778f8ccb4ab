from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids import allocate_digits, parse_sid, sid_string
from storage.errors import UserError
from storage.hashing import hash_order

catalogues = st.dictionaries(
    st.text(max_size=6), st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30
)


def matrix(rows: list[tuple[int, ...]], levels: int = 2) -> np.ndarray:
    return np.array(rows, np.int32).reshape(len(rows), levels)


@given(catalogues)
def test_digits_count_up_from_zero_under_each_prefix(catalogue: dict[str, tuple[int, int]]) -> None:
    digits = allocate_digits(list(catalogue), matrix(list(catalogue.values())))
    assert digits.dtype == np.int32
    for prefix in set(catalogue.values()):
        under = [int(d) for d, other in zip(digits, catalogue.values(), strict=True) if other == prefix]
        assert sorted(under) == list(range(len(under)))


@given(catalogues, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(catalogue: dict[str, tuple[int, int]], random: object) -> None:
    digits = dict(zip(catalogue, allocate_digits(list(catalogue), matrix(list(catalogue.values()))), strict=True))
    shuffled = list(catalogue)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = allocate_digits(shuffled, matrix([catalogue[item] for item in shuffled]))
    assert dict(zip(shuffled, again, strict=True)) == digits


def test_order_is_that_of_the_hash() -> None:
    ids = [f"item-{i}" for i in range(20)]
    digits = allocate_digits(ids, np.zeros((20, 3), np.int32))
    assert np.argsort(digits).tolist() == hash_order(ids).tolist()


@given(catalogues, catalogues)
def test_known_items_never_move_and_new_ones_never_collide(
    old: dict[str, tuple[int, int]], new: dict[str, tuple[int, int]]
) -> None:
    old_digits = allocate_digits(list(old), matrix(list(old.values())))
    known = np.column_stack([matrix(list(old.values())), old_digits])
    digits = allocate_digits(list(new), matrix(list(new.values())), known_ids=list(old), known_codes=known)
    taken = {(*prefix, int(d)): item for (item, prefix), d in zip(old.items(), old_digits, strict=True)}
    for (item, prefix), digit in zip(new.items(), digits, strict=True):
        sid = (*prefix, int(digit))
        assert taken.setdefault(sid, item) == item
        if old.get(item) == prefix:
            assert digit == old_digits[list(old).index(item)]


def test_a_gap_is_not_filled() -> None:
    known = np.array([[1, 1, 4]], np.int32)
    digits = allocate_digits(["b"], matrix([(1, 1)]), known_ids=["a"], known_codes=known)
    assert digits.tolist() == [5]  # what stood at 0 to 3 may be gone, but was given once


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=26))
def test_strings_read_back(codes: list[int]) -> None:
    assert parse_sid(sid_string(codes)) == tuple(codes)


@pytest.mark.parametrize("text", ["", "a_1", "<a_1><c_2>", "<b_1>", "<a_1> <b_2>", "<a_-1>", "<a_01>", "<a_1>x"])
def test_other_text_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="write it like"):
        parse_sid(text)
