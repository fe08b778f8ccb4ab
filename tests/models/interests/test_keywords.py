from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.chat.base import Failure
from models.interests import keywords
from models.interests.keywords import Keywords
from models.interests.mining import MOST_TAGS, PEOPLE, ItemText, clean_tag


def tags(title: str | None = None, description: str | None = None, caption: str | None = None) -> list[str]:
    found = Keywords().mine([ItemText(title, description, caption)])[0]
    assert not isinstance(found, Failure)
    assert list(found) == ["keyword"]
    return found["keyword"]


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("Wildcraft Unisex Black Travel Pouch", {"travel pouch", "black", "wildcraft"}),
        ("Colorbar Velvet Matte Lipstick 51 BR", {"matte lipstick", "colorbar velvet"}),
        ("Notebook", {"notebook"}),
        ("a tin cup", {"tin cup"}),
    ],
)
def test_a_title_gives_its_content_words(title, wanted):
    assert wanted <= set(tags(title))


def test_words_of_the_caption_that_speak_of_the_picture_are_no_tags():
    caption = (
        "A picture of umbrella, mainly pink and red, on a grey background: even spindly shape, checks, medium soft, "
        "grainy."
    )
    assert set(tags(caption=caption)) == {"umbrella", "pink", "red", "checks"}


def test_the_same_words_count_in_a_title():
    assert "soft blanket" in tags("Soft Blanket")


def test_a_text_without_words_gives_nothing():
    assert tags("42 17 & x") == []
    assert tags(None, "", "  ") == []


words = st.lists(st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=9), max_size=25).map(" ".join)


@settings(max_examples=50)
@example("", "00´ AAA")
@given(words, words)
def test_tags_are_few_clean_and_share_no_word(title, description):
    found = tags(title, description)
    assert len(found) <= MOST_TAGS
    assert all(tag == clean_tag(tag) for tag in found)
    assert all(len(tag.split()) <= 2 for tag in found)
    split = [word for tag in found for word in tag.split()]
    assert len(split) == len(set(split))
    assert not set(split) & PEOPLE


def test_an_item_is_mined_alike_alone_and_among_others():
    items = [ItemText("Sea Bird Print"), ItemText("Red Wool Scarf", "Warm wool from the north."), ItemText("Tea Cup")]
    assert Keywords().mine(items) == [Keywords().mine([item])[0] for item in items]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_equal_scores_are_told_apart_by_their_place_in_the_text(monkeypatch, order):
    """YAKE walks through sets, so it gives equal scores in another order from one process to the next."""
    found = [("red", 0.1 + 1e-15), ("brown", 0.1), ("coat", 0.1)]

    class Extractor:
        stopword_set: ClassVar[set[str]] = set()

        def extract_keywords(self, text: str) -> list[tuple[str, float]]:
            return [found[position] for position in order]

    monkeypatch.setattr(keywords, "_extractor", Extractor)
    assert tags("Brown red coat") == ["brown", "red", "coat"]
