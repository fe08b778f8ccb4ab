from __future__ import annotations

import numpy as np
import pyarrow as pa

from operators.tokens import attribute_tokens, bucket_ids, prefix_ids, token_ids, word_tokens

BUCKETS = 1 << 16


def ids(texts: list[str | None], limit: int = 64) -> list[list[int]]:
    array = pa.array(texts, pa.string())
    return token_ids(word_tokens(array), len(texts), buckets=BUCKETS, limit=limit).to_pylist()


def test_words_and_pairs_become_hashed_ids() -> None:
    expected = bucket_ids(["red", "round", "vase", "red round", "round vase"], BUCKETS).tolist()
    (found,) = ids(["Red, ROUND vase!"])
    assert sorted(found) == sorted(expected)
    assert all(0 < token < BUCKETS for token in found)


def test_pairs_stay_within_their_text() -> None:
    first, second = ids(["red", "vase"])
    assert [*first, *second] == bucket_ids(["red", "vase"], BUCKETS).tolist()


def test_nothing_to_say_is_the_null_token_in_its_place() -> None:
    assert ids([None, "a", "", "?!"]) == [[0], bucket_ids(["a"], BUCKETS).tolist(), [0], [0]]
    assert ids([None, None]) == [[0], [0]]
    assert ids([]) == []


def test_tokens_are_distinct_and_limited_to_the_first() -> None:
    assert ids(["a a b c d"], limit=3) == [bucket_ids(["a", "b", "c"], BUCKETS).tolist()]


def test_a_text_has_the_same_ids_alone_and_in_a_catalogue() -> None:
    assert ids(["blue lamp", "red vase", None])[1] == ids(["red vase"])[0]


def test_attributes_give_a_token_per_listed_value() -> None:
    kind = pa.map_(pa.string(), pa.string())
    table = pa.array([[("skipped", "row")], [], [("genres", "Drama|Comedy")], None, [("Brand", "Acme")]], kind)[1:]
    tokens = attribute_tokens(table).rows()
    assert tokens == [(1, "genres=drama"), (1, "genres=comedy"), (3, "brand=acme")]


def test_prefixes_are_shared_exactly_by_items_that_share_codes() -> None:
    codes = np.array([[3, 1, 2], [3, 1, 5], [3, 4, 2], [1, 3, 2]])
    found = prefix_ids(codes, buckets=BUCKETS)
    for a in range(4):
        for b in range(4):
            same = [bool((codes[a, : n + 1] == codes[b, : n + 1]).all()) for n in range(3)]
            assert (found[a] == found[b]).tolist() == same
    assert len(np.unique(found)) == 9  # (3) (1) (3,1) (3,4) (1,3) and four leaves
