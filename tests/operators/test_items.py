from __future__ import annotations

import numpy as np
import pyarrow as pa

from operators.items import BAGS, Buckets, item_features

BUCKETS = Buckets(user=100, item=1 << 16, token=1 << 16, sid=1 << 16)
ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Oak table", None, "Lamp"],
        "description": [None, None, "A blue lamp"],
        "caption": ["a brown table", None, "a lamp"],
        "attributes": pa.array([[("brand", "Acme")], [], [("brand", "Acme")]], pa.map_(pa.string(), pa.string())),
    }
)
CODES = np.array([[1, 2], [1, 3], [4, 2]])


def test_an_item_has_the_same_features_alone_and_in_the_catalogue() -> None:
    whole = item_features(ITEMS, CODES, buckets=BUCKETS, max_tokens=16)
    for row in range(3):
        alone = item_features(ITEMS.slice(row, 1), CODES[row : row + 1], buckets=BUCKETS, max_tokens=16)
        assert alone.to_pylist() == whole.slice(row, 1).to_pylist()


def test_missing_text_is_the_null_token_and_ids_fit_their_tables() -> None:
    table = item_features(ITEMS, CODES, buckets=BUCKETS, max_tokens=16).to_pylist()
    assert table[1]["caption"] == table[1]["text"] == [0]
    for row in table:
        assert all(0 <= token < BUCKETS.of(bag) for bag in BAGS for token in row[bag])
        assert len(row["sid"]) == 2
    assert set(table[0]["text"]) & set(table[2]["text"])  # the brand
    assert table[0]["sid"][0] == table[1]["sid"][0]
