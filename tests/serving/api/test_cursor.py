from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api import cursor
from serving.api.errors import ApiError
from serving.settings import MAX_CURSOR, MAX_IDS

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.lists(texts, max_size=50), texts)
def test_a_cursor_holds_what_was_given(ids, run) -> None:
    written = cursor.write(run, ids)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", written)
    assert cursor.read(written, run) == ids


@given(st.lists(texts, max_size=20), st.data())
def test_one_wrong_character_is_noticed(ids, data) -> None:
    written = cursor.write("run", ids)
    at = data.draw(st.integers(0, len(written) - 2))  # the last one may have bits that count for nothing
    other = data.draw(st.sampled_from([c for c in "Aa0-_%" if c != written[at]]))
    for damaged in (written[:at] + other + written[at + 1 :], written[:at]):
        with pytest.raises(ApiError, match="damaged"):
            cursor.read(damaged, "run")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text) -> None:
    with pytest.raises(ApiError):
        cursor.read(text, "run")


def test_a_cursor_of_another_run_is_told() -> None:
    with pytest.raises(ApiError) as error:
        cursor.read(cursor.write("one", ["a"]), "another")
    assert error.value.status_code == 409


def test_it_is_bounded() -> None:
    ids = [f"item-{n * 7919 % 1_000_003:06}" for n in range(MAX_IDS + 1)]
    assert len(cursor.write("run", ids[:-1])) <= MAX_CURSOR
    assert cursor.write("run", ids) is None
    assert cursor.write("run", ["é" * 1024 + str(n) for n in range(MAX_IDS)]) is None
