from __future__ import annotations

import string
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.features.tokens import (
    NULL_ID,
    Tokens,
    attribute_tokens,
    interest_tokens,
    sid_tokens,
    table_rows,
    text_tokens,
    token_lists,
)
from storage.hashing import hash_ids

WORDS, SINGLE, SUBWORDS = Tokens(), Tokens(pairs=False), Tokens(kind="subwords", pairs=False)
STRINGS, LISTS = pa.string(), pa.list_(pa.string())
TEXTS = st.lists(st.none() | st.text(alphabet=string.ascii_letters + " -_ßé☃日ﬁ", max_size=20), max_size=6)
HASHES = st.lists(st.just(NULL_ID) | st.integers(1, 2**63 - 1), max_size=30).map(lambda h: np.array(h, np.int64))


def tokens(text: str, how: Tokens = WORDS) -> list[str]:
    return text_tokens(pa.array([text], STRINGS), how)["token"].to_list()


def lists(texts: list[str | None], limit: int = 64, how: Tokens = WORDS) -> list[list[int]]:
    return token_lists(text_tokens(pa.array(texts, STRINGS), how), len(texts), limit=limit).to_pylist()


def hashes(*expected: str) -> list[int]:
    return hash_ids(expected).tolist()


def test_words_come_before_pairs_of_neighbours() -> None:
    assert tokens("Red, ROUND vase!") == ["red", "round", "vase", "red round", "round vase"]
    assert tokens("Red, ROUND vase!", SINGLE) == ["red", "round", "vase"]


def test_pairs_stay_within_their_text() -> None:
    assert lists(["red", "vase"]) == [hashes("red"), hashes("vase")]


@pytest.mark.parametrize("other", ["Straße", "STRASSE", "ｓｔｒａｓｓｅ", "ſtraſſe"])
def test_one_word_has_one_token_however_it_is_written(other: str) -> None:
    assert tokens(other) == tokens("strasse")
    assert tokens(normalize("NFD", "café")) == tokens(normalize("NFC", "CAFÉ"))


def test_sub_words_are_those_of_the_text_encoder() -> None:
    assert tokens("An embroidered, LACE café", SUBWORDS) == ["an", "embroidered", "lace", "cafe"]
    assert tokens("snowmanish", SUBWORDS) == ["snow", "##mani", "##sh"]
    assert tokens("snowman", Tokens(kind="subwords")) == ["snow", "##man", "snow ##man"]


def test_words_that_have_no_sub_words_stay_whole() -> None:
    strange = "x" * 150  # WordPiece gives up beyond 100 characters
    assert tokens(f"red {strange}", SUBWORDS) == ["red", strange]


@pytest.mark.parametrize("how", [WORDS, SUBWORDS])
def test_nothing_to_say_is_the_null_token_in_its_place(how: Tokens) -> None:
    assert lists([None, "a", "", "?!"], how=how) == [[NULL_ID], hashes("a"), [NULL_ID], [NULL_ID]]
    assert lists([None, None], how=how) == [[NULL_ID], [NULL_ID]]
    assert lists([], how=how) == []


def test_tokens_are_distinct_and_limited_to_the_first() -> None:
    assert lists(["a a b c d"], limit=3) == [hashes("a", "b", "c")]


@pytest.mark.parametrize("how", [WORDS, SUBWORDS])
@settings(max_examples=30)
@given(TEXTS)
def test_a_text_has_the_same_tokens_alone_and_in_a_catalogue(how: Tokens, texts: list[str | None]) -> None:
    whole = lists(texts, how=how)
    assert whole == [lists([text], how=how)[0] for text in texts]
    assert lists(texts, limit=2, how=how) == [row[:2] for row in whole]


def test_interests_are_tokens_as_a_whole_before_their_words() -> None:
    interests = pa.array([["skipped"], None, ["Art-Deco", "lamp"], [], ["lamp shade"]], LISTS)[1:]
    found = interest_tokens(interests, WORDS).rows()
    assert [token for row, token in found if row == 1] == ["art deco", "lamp", "art", "deco", "lamp"]
    assert [token for row, token in found if row == 3] == ["lamp shade", "lamp", "shade"]
    assert {row for row, _ in found} == {1, 3}
    parts = interest_tokens(pa.array([["snowman"]], LISTS), SUBWORDS)["token"].to_list()
    assert parts == ["snowman", "snow", "##man"]


def test_attributes_give_a_token_per_listed_value() -> None:
    kind = pa.map_(pa.string(), pa.string())
    table = pa.array([[("skipped", "row")], [], [("genres", "Drama|Comedy")], None, [("Brand", "Acme")]], kind)[1:]
    assert attribute_tokens(table).rows() == [(1, "genres=drama"), (1, "genres=comedy"), (3, "brand=acme")]


def test_prefixes_and_codes_are_shared_exactly_by_items_that_have_them() -> None:
    codes = np.array([[3, 3, 2], [3, 3, 5], [3, 4, 2], [1, 3, 2], [33, 3, 2]])
    found = np.array(token_lists(sid_tokens(codes), len(codes), limit=5).to_pylist())
    for a in range(len(codes)):
        for b in range(len(codes)):
            prefix = [bool((codes[a, : n + 1] == codes[b, : n + 1]).all()) for n in range(3)]
            code = (codes[a] == codes[b]).tolist()
            assert (found[a] == found[b]).tolist() == [prefix[0], prefix[1], code[1], prefix[2], code[2]]
    # three first codes, four pairs, five whole ones, and two codes of each further level: no level meets another
    assert len(np.unique(found)) == 16


def test_a_semantic_id_of_one_level_has_one_token() -> None:
    assert sid_tokens(np.array([[3], [4]])).rows() == [(0, "3"), (1, "4")]


def test_hashes_are_the_same_in_every_process_and_version() -> None:
    assert hash_ids(["red vase", ""]).tolist() == [1726857651558810775, 1622210670741801569]
    assert table_rows(hash_ids(["red vase"]), rows=1000, function=2).tolist() == [940]


@given(st.lists(st.text(max_size=5)))
def test_hashes_have_63_bits_and_are_never_null(texts: list[str]) -> None:
    found = hash_ids(texts)
    assert found.dtype == np.int64
    assert (found > 0).all()
    assert found.tolist() == [max(1, xxhash.xxh3_64_intdigest(text.encode()) >> 1) for text in texts]


@given(st.lists(st.text(max_size=5)), st.integers(2, 1 << 40))
def test_function_0_is_the_hashing_trick(texts: list[str], rows: int) -> None:
    expected = [1 + (xxhash.xxh3_64_intdigest(text.encode()) >> 1) % (rows - 1) for text in texts]
    assert table_rows(hash_ids(texts), rows=rows).tolist() == expected


@given(HASHES, st.integers(2, 1 << 40), st.integers(0, 3))
def test_rows_are_in_the_table_and_null_alone_is_row_0(found: np.ndarray, rows: int, function: int) -> None:
    at = table_rows(found, rows=rows, function=function)
    assert at.dtype == np.int64
    assert ((at == 0) == (found == NULL_ID)).all()
    assert (at < rows).all()
    for one, row in zip(found, at, strict=True):  # a token's row does not depend on its company
        assert table_rows(np.array([one]), rows=rows, function=function) == row


def test_functions_collide_together_by_chance_only() -> None:
    tokens, rows = 20_000, 1001
    found = hash_ids(str(number) for number in range(tokens))
    pairs, chance = tokens * (tokens - 1) / 2, 1 / (rows - 1)
    at = [table_rows(found, rows=rows, function=function) for function in range(3)]
    for one in range(3):
        assert collisions(at[one]) == pytest.approx(pairs * chance, rel=0.02)
        for other in range(one):
            expected = pairs * chance**2  # 200
            assert abs(collisions(at[one] * rows + at[other]) - expected) < 5 * expected**0.5


def collisions(rows: np.ndarray) -> int:
    sizes = np.unique(rows, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())
