from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pytest

from models.chat.base import Failure
from models.chat.openai import OpenAIChat
from models.interests.mining import ChatMiner, ItemText, Tags
from operators.base import apply, with_outcome
from operators.features.tokens import Tokens, interest_tokens
from operators.interests import Interests
from storage.errors import UserError
from tests.models.chat.endpoint import said, serving, text_of


def items(*texts: tuple[str | None, str | None, str | None]) -> pa.Table:
    columns = zip(*texts, strict=True) if texts else ((), (), ())
    names = ("title", "description", "caption")
    return with_outcome(
        pa.table({name: pa.array(values, pa.string()) for name, values in zip(names, columns, strict=True)})
    )


@dataclass(frozen=True)
class Moody:
    """A miner that fails on titles that say so."""

    def load(self) -> None: ...

    def mine(self, texts: Sequence[ItemText]) -> list[Tags | Failure]:
        assert all(any(text) for text in texts), "an item without a text reached the miner"
        if any(text.title == "no such model" for text in texts):
            raise UserError("There is no such model.")
        return [
            Failure("unparsable_interests", "why") if t.title == "odd" else {"keyword": [str(t.title), "tag"]}
            for t in texts
        ]


def test_every_row_gets_its_own_tags():
    table = items(("Red Wool Scarf", None, None), (None, "A tin cup.", None), (None, None, "A picture of umbrella."))
    result = apply(Interests(), table)
    scarf, cup, umbrella = result["interests"].to_pylist()
    assert "scarf" in " ".join(scarf)
    assert "tin cup" in cup
    assert umbrella == ["umbrella"]
    assert result["interest_kinds"][2].as_py() == ["keyword"]
    assert result["issues"].to_pylist() == [[], [], []]
    assert result.schema.field("interests") == Interests().output_schema.field("interests")


def test_without_text_there_are_no_tags_and_no_issue():
    result = apply(Interests(Moody()), items((None, "", "  "), ("scarf", None, None)))
    assert result["interests"].to_pylist() == [None, ["scarf", "tag"]]
    assert result["issues"].to_pylist() == [[], []]
    assert apply(Interests(), items(("17", None, None)))["interests"].to_pylist() == [None]


def test_a_failure_degrades_its_row_alone_and_keeps_earlier_issues():
    table = items(("scarf", None, None), ("odd", None, None))
    known = {"severity": "degraded", "code": "missing", "detail": "x.jpg"}
    column = table.schema.get_field_index("issues")
    table = table.set_column(column, "issues", pa.array([[], [known]], table["issues"].type))
    result = apply(Interests(Moody()), table)
    assert result["interests"].to_pylist() == [["scarf", "tag"], None]
    failed = {"severity": "degraded", "code": "unparsable_interests", "detail": "why"}
    assert result["issues"].to_pylist() == [[], [known, failed]]
    assert result["outcome"].to_pylist() == ["kept", "kept"]


def test_a_setting_that_cannot_work_ends_the_run():
    with pytest.raises(UserError):
        apply(Interests(Moody()), items(("scarf", None, None), ("no such model", None, None)))


def test_an_empty_batch_has_the_columns():
    result = apply(Interests(), items())
    assert result.num_rows == 0
    assert result.schema.field("interests").type == pa.list_(pa.string())


def test_the_papers_example_from_a_chat_server_to_the_features_of_the_ranker(monkeypatch: pytest.MonkeyPatch):
    """TriAlignGR's intents of a pair of headphones, none of whose words stand in its texts."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    intents = ["productivity-focused lifestyle", "distraction-free commuting"]
    answer = json.dumps({"intents": intents, "keywords": ["noise-cancelling headphones", "wireless"]})
    table = items(("Wireless noise-cancelling headphones", "30 hours of music, over-ear.", "Black headphones."))
    with serving() as endpoint:
        endpoint.answer = lambda body, number: said(f"They keep noise away, so one can work and travel.\n{answer}")
        chat = OpenAIChat("qwen2.5-7b-instruct", base_url=endpoint.url)
        found = apply(Interests(ChatMiner(chat, kinds=("intent", "keyword"))), table)
        (asked,) = endpoint.requests
    assert "Caption: Black headphones." in text_of(asked)
    assert found["interests"].to_pylist() == [[*intents, "noise-cancelling headphones", "wireless"]]
    assert found["interest_kinds"].to_pylist() == [["intent", "intent", "keyword", "keyword"]]
    tokens = interest_tokens(found["interests"], Tokens())["token"].to_list()
    assert {"distraction free commuting", "wireless"} <= set(tokens)
