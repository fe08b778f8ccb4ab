from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from models.ranking.config import BAGS
from operators.features.items import item_features
from operators.features.tokens import Tokens
from storage.hashing import hash_ids

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Oak table", None, "Lamp"],
        "description": [None, None, "A blue lamp"],
        "caption": ["a brown table", None, "a lamp"],
        "interests": pa.array([["oak", "dining room"], None, []], pa.list_(pa.string())),
        "attributes": pa.array([[("brand", "Acme")], [], [("brand", "Acme")]], pa.map_(pa.string(), pa.string())),
    }
)
CODES = np.array([[1, 2], [1, 3], [4, 2]])


@pytest.mark.parametrize("tokens", [Tokens(), Tokens(kind="subwords", pairs=False, max_tokens=2)])
def test_an_item_has_the_same_features_alone_and_in_the_catalogue(tokens: Tokens) -> None:
    whole = item_features(ITEMS, CODES, tokens)
    for row in range(3):
        alone = item_features(ITEMS.slice(row, 1), CODES[row : row + 1], tokens)
        assert alone.schema == whole.schema
        assert alone.to_pylist() == whole.slice(row, 1).to_pylist()


def test_what_is_missing_is_the_null_token() -> None:
    table = item_features(ITEMS, CODES, Tokens())
    assert table.column_names == ["item_id", "item", *BAGS]
    bare = table.to_pylist()[1]
    assert all(bare[bag] == [0] for bag in BAGS if bag != "sid")
    assert bare["item"] == hash_ids(["b"])[0]
    nothing = ITEMS.select(["item_id"])
    for name in ("title", "description", "caption", "interests", "attributes"):
        nothing = nothing.append_column(name, pa.nulls(3, ITEMS.schema.field(name).type))
    for row in item_features(nothing, CODES, Tokens()).to_pylist():
        assert all(row[bag] == [0] for bag in BAGS if bag != "sid")


def test_lists_hold_what_they_are_named_for() -> None:
    first, _, third = item_features(ITEMS, CODES, Tokens()).to_pylist()
    expected = {
        "caption": ["a", "brown", "table", "a brown", "brown table"],
        "interests": ["oak", "dining room", "dining", "room"],
        "title": ["oak", "table", "oak table"],
        "text": ["brand=acme", "oak", "table", "oak table"],
        "sid": ["1", "1-2", "c2:2"],
    }
    assert {bag: first[bag] for bag in BAGS} == {bag: hash_ids(texts).tolist() for bag, texts in expected.items()}
    assert third["text"] == hash_ids(["brand=acme", "lamp", "a", "blue", "lamp a", "a blue", "blue lamp"]).tolist()
    few = item_features(ITEMS, CODES, Tokens(max_tokens=2)).to_pylist()[0]
    assert {bag: few[bag] for bag in BAGS} == {bag: first[bag] if bag == "sid" else first[bag][:2] for bag in BAGS}
