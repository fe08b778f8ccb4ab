from __future__ import annotations

import pyarrow as pa
import pytest

from operators.log.encoding import encode
from storage.errors import UserError
from storage.hashing import hash_order

IDS = ["a", "b", "c"]


def interactions(items: list[str]) -> pa.Table:
    time = pa.array(range(len(items)), pa.timestamp("us", "UTC"))
    return pa.table({"user_id": ["u"] * len(items), "item_id": items, "timestamp": time})


def test_users_and_items_are_numbered_in_hash_order_and_events_by_time() -> None:
    ids = pa.chunked_array([pa.array(IDS).take(pa.array(hash_order(IDS)))])
    log = encode(interactions(["c", "a", "x"]), ids)
    assert log.items.take(pa.array(log.events.item)).to_pylist() == ["c", "a"]  # x is no item
    assert log.users.take(pa.array(log.events.user)).to_pylist() == ["u", "u"]
    assert log.events.time.tolist() == [0, 1]
    assert not log.labelled


def test_a_log_of_other_items_is_told() -> None:
    with pytest.raises(UserError, match="No interaction names an item"):
        encode(interactions(["x"]), pa.chunked_array([IDS]))
