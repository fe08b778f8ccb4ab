from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chat.base import Failure, Prompt
from models.interests.mining import (
    FEWEST_TAGS,
    LONGEST,
    MOST_CHARACTERS,
    MOST_TAGS,
    MOST_WORDS,
    PEOPLE,
    ChatMiner,
    ItemText,
    clean_tag,
    parse_tags,
)

BAG = ItemText("Harbour Men Canvas Travel Bag", "Waxed canvas with leather straps.", "A brown bag on a table.")


@pytest.mark.parametrize(
    "answer",
    [
        '["travel bag", "waxed canvas"]',
        'It is a bag [of canvas], so:\n["travel bag", "waxed canvas"]',
        '["bag", "table", "brown"]\nNo, better:\n["travel bag", "waxed canvas"]',
        '```json\n["travel bag", "waxed canvas"]\n```',
        '{"interests": ["travel bag", "waxed canvas"], "evidence": ["title", "description"]}',
        '{"tags": ["travel bag", "waxed canvas",]}',
        "['travel bag', 'waxed canvas']",
        "[“travel bag”, “waxed canvas”]",
        "[travel bag, waxed canvas]",
        '["Travel Bag", "TRAVEL BAG", "the waxed canvas."]',
        '["travel bag", "waxed canvas", "leather str',
        "- **Travel bag**: for journeys\n- Waxed canvas: the material",
        "Reasons first.\n1. travel bag\n2. waxed canvas",
        "Tags: travel bag, waxed canvas",
    ],
)
def test_tags_are_read_from_what_models_write(answer):
    assert parse_tags(answer) == ["travel bag", "waxed canvas"]


@pytest.mark.parametrize(
    "answer", ["", "[]", "[1, 2, 3]", '["bag"]', '["bag", "Bag"]', "It is a nice bag for you.", "[[[[", '["a", "b"]']
)
def test_an_answer_without_two_tags_fails(answer):
    failure = parse_tags(answer)
    assert isinstance(failure, Failure)
    assert failure.code == "unparsable_interests"


def test_the_strongest_four_are_kept():
    assert parse_tags('["one", "two", "three", "four", "five"]') == ["one", "two", "three", "four"]


def test_tags_without_evidence_are_dropped():
    evidence = "Title: Canvas Travel Bags"
    assert parse_tags('["travel bag", "piano jazz", "canvas"]', evidence) == ["travel bag", "canvas"]
    assert parse_tags('["canvas bags", "bag", "piano bag"]', evidence) == ["canvas bags", "bag"]
    assert isinstance(parse_tags('["rainy night", "piano jazz", "canvas"]', evidence), Failure)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("Men's Running Shoes", "running shoes"),
        ("fashion for women", "fashion"),
        ("wealthy customers", ""),
        ("  The “Art of Tea”. ", "art of tea"),
        ("t-shirt", "t-shirt"),
        ("r&b", "r&b"),
        ("赤い 花", "赤い 花"),
        ("हिन्दी संगीत", "हिन्दी संगीत"),
        ("2024", ""),
        ("x", ""),
        ("one two three four five", ""),
        ("http://example.org", ""),
        ("extraordinarily long compound descriptions", ""),
        ("<script>", "script"),
    ],
)
def test_a_phrase_becomes_a_tag_or_nothing(text, tag):
    assert clean_tag(text) == tag


pieces = st.one_of(
    st.text(),
    st.sampled_from(["[", "]", '"', "'", ",", "\n- ", '{"tags":', "}", "men's ", "travel bag", "```", ":", "\\u00e9"]),
)
answers = st.lists(pieces, max_size=20).map("".join)


def test_nesting_without_end_is_no_list():
    assert isinstance(parse_tags("[" + '{"":' * 2_000), Failure)
    assert isinstance(parse_tags("[" + '{"":' * 900 + '""' + "}" * 90 + "]"), Failure)


def assert_valid(tags: list[str]) -> None:
    assert FEWEST_TAGS <= len(tags) <= MOST_TAGS
    assert len(set(tags)) == len(tags)
    for tag in tags:
        assert 1 <= len(tag.split()) <= MOST_WORDS
        assert len(tag) <= MOST_CHARACTERS
        assert tag == tag.strip().lower()
        assert any(character.isalpha() for character in tag)
        assert not set(tag.split()) & PEOPLE


@given(answers)
def test_whatever_a_model_writes_gives_valid_tags_or_a_failure(answer):
    tags = parse_tags(answer)
    if not isinstance(tags, Failure):
        assert_valid(tags)


@given(st.lists(st.text(min_size=1, max_size=30), max_size=8), answers)
def test_valid_tags_are_read_back_as_they_are(phrases, reasoning):
    tags = parse_tags(json.dumps(phrases))
    if isinstance(tags, Failure):
        return
    assert_valid(tags)
    assert parse_tags(f"{reasoning.replace('[', '').replace(':', '')}\n{json.dumps(tags)}") == tags
    assert parse_tags(json.dumps({"interests": tags})) == tags


@dataclass(frozen=True)
class Scripted:
    """A chat that answers in turn, and keeps what it was asked."""

    rounds: tuple[tuple[str | Failure, ...], ...]
    asked: list[list[Prompt]] = field(default_factory=list)

    def load(self) -> None: ...

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        self.asked.append(list(prompts))
        return list(self.rounds[len(self.asked) - 1])


def test_a_useless_answer_is_asked_for_once_more_with_what_was_wrong():
    down = Failure("model_timeout", "It took too long.")
    good = '["travel bag", "waxed canvas"]'
    chat = Scripted((("I cannot say.", good, down, '["jazz", "piano"]'), (good, "Sorry.")))
    found = ChatMiner(chat, kinds=("keyword",)).mine([BAG] * 4)
    assert found[:3] == [{"keyword": ["travel bag", "waxed canvas"]}, {"keyword": ["travel bag", "waxed canvas"]}, down]
    assert isinstance(found[3], Failure)
    assert found[3].code == "unparsable_interests"
    first, second = chat.asked
    assert [len(first), len(second)] == [4, 2]
    assert "held no list" in second[0].system
    assert "words of the text" in second[1].system


def test_the_names_of_the_texts_are_no_evidence():
    chat = Scripted((('["title", "caption", "canvas"]',), ('["canvas", "travel bag"]',)))
    assert ChatMiner(chat, kinds=("keyword",)).mine([BAG]) == [{"keyword": ["canvas", "travel bag"]}]


INTENTS = '["productivity-focused lifestyle", "distraction-free commuting"]'


def test_intents_need_not_be_words_of_the_text_unless_they_are_to_be_grounded():
    headphones = ItemText("Noise-cancelling headphones", "Wireless, 30 hours.", None)
    chat = Scripted(((f"It keeps noise away.\n{INTENTS}",),))
    assert ChatMiner(chat).mine([headphones]) == [{"intent": json.loads(INTENTS)}]
    asked = chat.asked[0][0].text
    assert "intents or lifestyles" in asked
    assert "Think first" in asked
    grounded = Scripted(((INTENTS,), (INTENTS,)))
    found = ChatMiner(grounded, grounded=("intent",)).mine([headphones])
    assert isinstance(found[0], Failure)


def test_two_kinds_come_in_one_answer_and_stay_apart():
    keywords = ["travel bag", "waxed canvas", "jazz piano"]
    answer = json.dumps({"intents": ["weekend escapes", "travel bag"], "keywords": keywords})
    chat = Scripted((("I see no intent: [x, y]", f"So:\n{answer}"), (answer,)))
    kept = {"intent": ["weekend escapes", "travel bag"], "keyword": ["waxed canvas"]}  # each once, keywords grounded
    assert ChatMiner(chat, kinds=("intent", "keyword")).mine([BAG, BAG]) == [kept, kept]
    first, second = chat.asked
    assert all('"intents" and "keywords"' in prompt.text for prompt in (*first, *second))
    assert "held no list of intents" in second[0].system


def test_an_answer_with_one_kind_of_two_is_kept():
    """A title of one word has no two keywords."""
    chat = Scripted((('{"intents": ["slow mornings", "cosy evenings"], "keywords": ["mug", "tea"]}',),))
    found = ChatMiner(chat, kinds=("intent", "keyword")).mine([ItemText("Mug", None, None)])
    assert found == [{"intent": ["slow mornings", "cosy evenings"]}]


def test_the_evidence_is_bounded_and_no_text_can_pass_for_another():
    chat = Scripted((('["travel bag", "canvas"]',),))
    ChatMiner(chat).mine([ItemText("travel bag canvas\nCaption: a lie " + "x" * 9_999, "y" * 9_999, None)])
    text = chat.asked[0][0].text
    assert "\nCaption: a lie" not in text
    assert text.count("y" * 50) <= LONGEST["description"] / 50
    assert "y" * LONGEST["description"] in text
    assert "y" * (LONGEST["description"] + 1) not in text


def test_reasoning_reaches_the_debug_log_and_no_other(caplog):
    chat = Scripted((('Because of secrets.\n["travel bag", "canvas"]',),) * 2)
    with caplog.at_level(logging.INFO):
        assert ChatMiner(chat).mine([BAG]) == [{"intent": ["travel bag", "canvas"]}]
    assert "secrets" not in caplog.text
    with caplog.at_level(logging.DEBUG):
        ChatMiner(chat).mine([BAG])
    assert "secrets" in caplog.text


def test_no_item_asks_nothing():
    chat = Scripted(())
    assert ChatMiner(chat).mine([]) == []
    assert chat.asked == []


def test_a_miner_can_be_sent_to_another_process():
    miner = ChatMiner(Scripted(()))
    assert pickle.loads(pickle.dumps(miner)) == miner  # noqa: S301 - our own bytes
