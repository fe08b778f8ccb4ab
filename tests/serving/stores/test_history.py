from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.stores.base import Event, User
from serving.stores.history import after
from storage.hashing import hash_ids
from tests.stores import same

DRAWN = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([-1.0, 0.0, 0.5, 3.0]), st.integers(0, 6)))


def event(number: int, item: str, weight: float, time: int) -> Event:
    return Event("u", f"{number}", item, "kind", weight, time)


def expected(events: list[Event]) -> User:
    ordered = sorted(events, key=lambda each: each.time)
    liked = [each for each in ordered if each.weight > 0]
    last = {each.item_id: each.weight for each in ordered if each.weight}
    order = {each.item_id: at for at, each in enumerate(ordered) if each.weight}
    disliked = sorted((item for item, weight in last.items() if weight < 0), key=order.__getitem__)
    times = np.array([each.time for each in liked], np.int64)
    return User(hash_ids([each.item_id for each in liked]), times, len(events), (), hash_ids(disliked).astype(np.int64))


@given(DRAWN)
def test_a_user_is_what_their_events_say_in_the_order_of_time(drawn: list[tuple[str, float, int]]) -> None:
    events = [event(number, *each) for number, each in enumerate(drawn)]
    assert same(after(None, events), expected(events)) or not events
    user = None
    for each in sorted(events, key=lambda one: one.time):
        user = after(user, [each])
    assert not events or same(user, expected(events))


def test_a_like_that_comes_late_has_its_place_in_the_history() -> None:
    user = after(None, [event(0, "a", 1, 10), event(1, "b", 1, 30)])
    user = after(user, [event(2, "c", 1, 20), event(3, "d", 1, 30)])
    assert user.items.tolist() == hash_ids(["a", "c", "b", "d"]).tolist()
    assert user.times.tolist() == [10, 20, 30, 30]


def test_no_event_changes_nothing() -> None:
    user = after(None, [event(0, "a", 1, 10)])
    assert after(user, []) is user
