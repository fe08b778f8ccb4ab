from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from storage import hashing
from storage.hashing import content_order, draw_uniform, hash_numbers, hash_order, hash_rows, hash_strings


@given(st.lists(st.text(max_size=8), unique=True), st.randoms())
def test_order_depends_on_the_set_of_ids_alone(ids, random):
    shuffled = list(ids)
    random.shuffle(shuffled)
    assert [ids[i] for i in hash_order(ids)] == [shuffled[i] for i in hash_order(shuffled)]


@given(st.lists(st.text(max_size=8), unique=True))
def test_order_is_that_of_hashes_then_ids(ids):
    expected = sorted(ids, key=lambda value: (int(hash_strings([value])[0]), value))
    assert [ids[i] for i in hash_order(ids)] == expected


def test_ids_of_equal_hashes_are_sorted(monkeypatch):
    monkeypatch.setattr(hashing, "hash_strings", lambda values, seed: np.zeros(len(values), np.uint64))
    ids = ["b", "\U0001f600", "", "\uffee", "a"]
    assert [ids[i] for i in hash_order(ids)] == sorted(ids)


def test_hashes_are_the_published_xxh3():
    # Reference values of XXH3-64: a change of library or encoding would silently move every split and feature.
    assert hash_strings(["", "a"]).tolist() == [0x2D06800538D394C2, 0xE6C632B61E964E1F]


def test_seeds_give_unrelated_orders():
    ids = [str(i) for i in range(100)]
    assert hash_order(ids, seed=1).tolist() != hash_order(ids, seed=2).tolist()


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(0, 9), st.integers(1, 4)), elements=st.floats(width=32, allow_nan=False)
    )
)
def test_rows_are_hashed_by_their_bytes(values):
    hashes = hash_rows(values)
    assert hashes.dtype == np.uint64
    positive = np.where(values == 0, np.float32(0), values)
    assert hashes.tolist() == [xxhash.xxh3_64_intdigest(row.astype("<f4").tobytes()) for row in positive]


def test_rows_hash_alike_in_any_block_and_layout(monkeypatch):
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    hashes = hash_rows(values)
    monkeypatch.setattr(hashing, "BLOCK_ROWS", 7)
    assert hash_rows(values).tolist() == hashes.tolist()
    assert hash_rows(np.asfortranarray(values)).tolist() == hashes.tolist()
    assert hash_rows(np.repeat(values, 2, axis=1)[:, ::2]).tolist() == hashes.tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_content_comes_first_and_equal_contents_go_by_their_ids(contents):
    ids, hashes = [f"item-{i}" for i in range(len(contents))], np.array(contents, np.uint64)
    order = content_order(hashes, ids)
    place = {name: at for at, name in enumerate(ids[i] for i in hash_order(ids))}
    assert order.tolist() == sorted(range(len(ids)), key=lambda i: (contents[i], place[ids[i]]))


def test_draws_follow_from_numbers_and_a_seed():
    one, other = np.arange(20_000), np.arange(20_000) // 100
    key = hash_numbers(one, other, seed=3)
    assert len(np.unique(key)) == len(key)
    assert (hash_numbers(one[5:9], other[5:9], seed=3) == key[5:9]).all()
    assert (hash_numbers(one, other, seed=4) != key).all()
    draws = np.stack([draw_uniform(key, number) for number in range(3)])
    assert ((draws >= 0) & (draws < 1)).all()
    assert np.abs(draws.mean(1) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.03
