"""Ids and texts as data frames, spreadsheets and shops write them."""

from __future__ import annotations

import html

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.stages.ingest.texts import ids, nested, plain

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([8.0, NAN, None, float("inf"), -3.0], ["8", None, None, None, "-3"]),
        ([8.0, 1.5], ["8", "1.5"]),
        (["8.0", "9.0", None, "nan"], ["8", "9", None, None]),
        (["8.0", "a"], ["8.0", "a"]),
        (["nan", "NaN", "NULL", "null", "None", "<NA>", "NaT", "\\N", "", " "], [None] * 10),
        ([" 007 ", "p-1"], ["007", "p-1"]),
        ([7, None], ["7", None]),
        (['="00027"', ' ="a b" ', '=""', '="x'], ["00027", "a b", None, '="x']),
        ([None, None], [None, None]),
    ],
)
def test_ids(values: list[object], found: list[str | None]) -> None:
    assert ids(pl.Series("item_id", values, strict=False)).to_list() == found


CLEAN = {
    '<div class="a"><p>A mug</p><br/><ul><li>Soft&nbsp;felt &amp; wool</li></ul></div>': "A mug Soft felt & wool",
    "a<script>var x = '<p>';</script>b<STYLE type='x'>p {}</STYLE >c": "a b c",
    "cut off <script>var x": "cut off",
    "<b>R</b>ed <a href=\"x > y\">mug</a><td nowrap>": "Red mug",
    "<!-- no -->x<!DOCTYPE html><![CDATA[y]]>": "x y",
    "&lt;p&gt;twice&lt;/p&gt; &amp;amp; more": "twice & more",
    "It&#39;s &#x27;so&#x27; &eacute;": "It's 'so' é",
    "zero\u200bwidth\ufeff soft\u00adhyphen\x00\x07\u200e": "zerowidth softhyphen",
    "blanks\n\n and\u00a0 \ttabs ": "blanks and tabs",
    "['two', 'parts']": "two parts",
    "<p> </p>": None,
    "nan": None,
    "N/A": None,
    "[]": None,
}  # fmt: skip
KEPT = [
    "a < b",
    "I <3 you",
    "a<b and c>d",
    "5 > 3",
    "AT&T",
    "R&D; x",
    "<Untitled>",
    "<YEAR> 1999",
    "[REC]",
    "007",
    "x&y=1",
    "می\u200cخواهم 👩\u200d👧",  # joiners
]


@pytest.mark.parametrize("text", CLEAN)
def test_markup_and_invisible_characters_leave(text: str) -> None:
    assert plain(pl.Series([text, None, "x"])).to_list() == [CLEAN[text], None, "x"]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_markup_stays(text: str) -> None:
    assert plain(pl.Series([text])).to_list() == [text]
    assert plain(pl.Series([html.escape(text)])).to_list() == [text]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30) | st.sampled_from([*CLEAN, *KEPT]), max_size=5))
def test_clean_text_is_clean(texts: list[str]) -> None:
    once = plain(pl.Series(texts, dtype=pl.String))
    assert not once.drop_nulls().str.contains(r"^\s|\s$|\s\s|[\p{Cc}]").any()


def test_texts_of_other_types() -> None:
    assert plain(pl.Series([["a<br>", "b"], [], None])).to_list() == ["a b", None, None]
    assert plain(pl.Series([7, None])).to_list() == ["7", None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a", {"b": null}]', ["a", {"b": None}]),
        ("['a', 'b']", ["a", "b"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("{'a': (1, 2)}", {"a": (1, 2)}),
        ("[1].jpg", None),
        ("__import__('os')", None),
        ("[__import__('os')]", None),
        ("[" * 10_000, None),
        ("a.jpg", None),
    ],
)
def test_lists_and_objects_as_text(text: str, value: object) -> None:
    assert nested(text) == value
