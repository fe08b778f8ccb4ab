"""What every store does with events and impressions, whatever it keeps them in."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, count
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.stores.base import Event, Impression, LoadableStore, User
from serving.stores.history import after
from serving.stores.opening import open_store
from storage.errors import StoreError, UserError
from storage.hashing import hash_ids
from tests.conftest import REPOSITORY
from tests.stores import at_once, redis_server, same, user

ANY_ID = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=5)
EVENTS = st.lists(
    st.builds(
        Event,
        user_id=st.sampled_from(["u", "v", "é", "u\0"]),
        event_id=st.sampled_from("abcdefgh"),
        item_id=ANY_ID,
        kind=st.sampled_from(["view", "buy"]),
        weight=st.floats(-2, 2),
        time=st.integers(0, 2**53),
        recommendation_id=st.none() | ANY_ID,
        kept=st.integers(0, 2**53),
    ),
    max_size=12,
)
WRITER = """
import sys
from serving.stores.base import Event
from serving.stores.opening import open_store
store, first = open_store(sys.argv[1], create=True), int(sys.argv[2])
for number in range(first, first + 1_000_000):
    store.add([Event(f"user {number % 7}", f"{number} {n}", f"item {number}", "like", 1.0, number) for n in range(3)])
    print(number, flush=True)
"""


@pytest.fixture
def store(store_uri: str) -> Iterator[LoadableStore]:
    opened = open_store(store_uri, create=True)
    yield opened
    opened.close()


def event(number: int, user_id: str = "u", weight: float = 1.0, *, time: int | None = None) -> Event:
    return Event(user_id, f"event {number}", f"item {number}", "like", weight, number if time is None else time, "r")


def impression(number: int, user_id: str | None) -> Impression:
    return Impression(
        user_id, f"answer {number}", number, "run:1", "/v1/recommend", ["a", "b"], [0.5, 0.25], [["x"], []], [1.0, 1.0]
    )


def kept(store: LoadableStore) -> list[Event]:
    return sorted(chain.from_iterable(store.every_event()))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, max_size=3))
def test_events_are_kept_once_and_change_their_users(store: LoadableStore, calls: list[list[Event]]) -> None:
    salt = uuid4()  # users of this example alone
    calls = [[each._replace(user_id=f"{salt}{each.user_id}") for each in events] for events in calls]
    first: dict[tuple[str, str], Event] = {}
    for events in calls:
        new = {}
        for each in events:
            if each[:2] not in first:
                new.setdefault(each[:2], each)
        assert store.add(events) == len(new)
        first |= new
    names = sorted({each.user_id for each in chain.from_iterable(calls)})
    assert sorted(store.events(names), key=repr) == sorted(first.values(), key=repr)
    for name, found in zip(names, store.read(names), strict=True):
        own = [each for each in first.values() if each.user_id == name]
        assert found is not None
        assert found.events == len(own)
        liked = [each for each in own if each.weight > 0]
        assert sorted(found.items.tolist()) == sorted(hash_ids([each.item_id for each in liked]).tolist())
        assert found.times.tolist() == sorted(each.time for each in liked)


def test_users_of_events_are_counted(store: LoadableStore) -> None:
    store.write(["u"], [user(1)], until=0)
    assert store.add([event(1), event(2, "v"), event(3, "v")]) == 3
    assert store.add([event(1), event(4, "v")]) == 1
    assert store.add([]) == 0
    assert store.count() == 2
    assert kept(store) == [event(1), event(2, "v"), event(3, "v"), event(4, "v")]
    loaded, new = store.read(["u", "v"])
    assert loaded is not None
    assert new is not None
    assert same(loaded, after(user(1), [event(1)]))
    assert (new.events, new.trained) == (3, ())


def test_events_after_the_log_outlive_a_load(store: LoadableStore) -> None:
    store.add([event(5, time=50), event(6, time=100), event(7, time=101), event(8, weight=-1, time=150)])
    logged = user(1)._replace(disliked=np.empty(0, np.int64))  # of which a log knows nothing
    store.write(["u", "v"], [logged, user(2)], until=100)
    (found,) = store.read(["u"])
    assert same(found, after(logged, [event(7, time=101), event(8, weight=-1, time=150)]))
    assert store.count() == 2


def test_a_like_that_came_after_the_log_outlives_a_load(store: LoadableStore) -> None:
    logged = user(0)._replace(items=hash_ids(["item 1"]).astype(np.int64), times=np.array([10]))
    late = event(3, time=20)._replace(kept=101)
    store.add([event(2, time=20)._replace(kept=100), late, event(1, time=10)._replace(kept=101)])
    store.write(["u"], [logged], until=100)
    (found,) = store.read(["u"])
    assert found is not None
    assert found.times.tolist() == [10, 20]
    assert found.items.tolist() == hash_ids(["item 1", "item 3"]).tolist()
    assert late in store.events(["u"])


def test_a_dislike_outlives_a_load_until_a_later_like(store: LoadableStore) -> None:
    items, times = hash_ids(["item 2", "item 3", "item 5"]).astype(np.int64), np.array([1, 30, 31])
    logged = User(items, times, 3, (), np.empty(0, np.int64))
    acts = [(1, -1, 10), (2, -1, 20), (3, -1, 20), (4, -1, 5), (5, -1, 31), (6, -1, 150)]
    store.add([event(item, weight=weight, time=time) for item, weight, time in acts])
    store.add([event(7, weight=1, time=21)._replace(item_id="item 4"), event(8, time=200)._replace(item_id="item 6")])
    for _ in range(2):
        store.write(["u"], [logged], until=100)
        (found,) = store.read(["u"])
        assert found is not None
        # The log liked 2 before, 3 after, 5 at the same time; the store has later likes of 4 and 6.
        assert found.disliked.tolist() == hash_ids(["item 1", "item 2", "item 5"]).tolist()


def test_impressions_are_kept(store: LoadableStore) -> None:
    shown = [impression(1, "u"), impression(2, None), impression(3, "u")]
    store.show(shown[:2])
    store.show([])
    store.show(shown[1:])
    assert sorted(chain.from_iterable(store.every_impression()), key=lambda each: each.time) == shown


def test_many_impressions_come_some_at_a_time(store: LoadableStore) -> None:
    shown = [impression(number, None) for number in range(25_000)]
    store.show(shown)
    parts = list(store.every_impression())
    assert {each.recommendation_id for part in parts for each in part} == {each.recommendation_id for each in shown}
    assert max(map(len, parts)) < len(shown)


def test_a_user_is_forgotten_and_stays_so(store: LoadableStore, store_uri: str) -> None:
    store.write(["u", "v"], [user(1), user(2)], until=0)
    store.add([event(1), event(2, "v"), event(3, "nobody")])
    store.show([impression(1, "u"), impression(2, "v"), impression(3, None)])
    store.forget("u", 70)
    store.forget("never seen", 80)
    assert store.forgotten() == {"u": 70, "never seen": 80}
    assert store.read(["u"]) == [None]
    assert store.count() == 2
    assert [each.user_id for each in kept(store)] == ["nobody", "v"]
    assert {each.user_id for each in chain.from_iterable(store.every_impression())} == {"v", None}
    store.write(["u", "v"], [user(1), user(2)], until=0)  # a run from before
    assert store.read(["u"]) == [None]
    assert store.count() == 2
    store.show([impression(60, "u"), impression(71, "u")])  # the first one was given before
    shown = {(each.user_id, each.time) for each in chain.from_iterable(store.every_impression())}
    assert shown == {("v", 2), (None, 3), ("u", 71)}
    store.close()
    again = open_store(store_uri, create=True)
    assert again.add([event(9, time=70), event(10, time=99)]) == 1  # one came late; who comes back is somebody new
    (found,) = again.read(["u"])
    assert found is not None
    assert found.events == 1
    again.close()


def test_an_event_of_before_its_user_was_forgotten_does_not_stand_for_a_later_one(store: LoadableStore) -> None:
    store.forget("u", 70)
    assert store.add([event(1, time=60), event(1, time=80), event(1, time=90)]) == 1
    assert kept(store) == [event(1, time=80)]


def test_what_was_of_a_forgotten_user_is_in_no_file(tmp_path: Path) -> None:
    uri = f"sqlite:{tmp_path}/users.db"
    store = open_store(uri, create=True)
    name = "someone with a name that is found"
    store.add([event(number, name) for number in range(50)] + [event(99, "v")])
    store.show([impression(1, name)])
    store.forget("v", 1)
    store.forget(name, 2)
    store.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert content.count(name.encode()) <= 2  # the mark that keeps them forgotten, and its index
    assert b"event 17" not in content
    assert b"answer 1" not in content


def test_writers_of_one_user_lose_nothing(store_uri: str) -> None:
    def work(number: int) -> None:
        own = open_store(store_uri, create=True)
        for turn in range(20):
            own.add([event(100 * number + turn), event(turn, "shared")])
        own.close()

    at_once(work, 5)
    store = open_store(store_uri, create=True)
    found, shared = store.read(["u", "shared"])
    assert found is not None
    assert shared is not None
    assert (found.events, len(found.items)) == (100, 100)
    assert (shared.events, len(shared.items)) == (20, 20)
    assert len(kept(store)) == 120
    store.close()


def test_a_killed_writer_keeps_what_it_was_told_is_kept(store_uri: str) -> None:
    first, told = 1, list[int]()
    for calls in (1, 5, 20):
        command = [sys.executable, "-c", WRITER, store_uri, str(first)]
        writer = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for last, line in zip(count(first), writer.stdout, strict=False):
            told.append(int(line))
            if last == first + calls:
                break
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.communicate()[0].split()]
        first = max(told) + 10
    store = open_store(store_uri, create=True)
    events = kept(store)
    numbers = [each.time for each in events]
    assert len(events) == len({each[:2] for each in events})
    assert set(told) <= set(numbers)
    assert set(np.unique(numbers, return_counts=True)[1].tolist()) == {3}  # whole calls
    names = sorted({each.user_id for each in events})
    for name, found in zip(names, store.read(names), strict=True):
        assert same(found, after(None, [each for each in events if each.user_id == name]))
    store.close()


def test_a_server_that_would_lose_events_takes_none() -> None:
    with redis_server("--appendonly", "no") as uri:
        store = open_store(uri, create=True)
        with pytest.raises(UserError, match="start the server with `appendonly yes`"):
            store.add([event(1)])
        with pytest.raises(UserError, match="start the server with `appendonly yes`"):
            store.forget("u", 1)
        assert store.read(["u"]) == [None]
        with redis.Redis.from_url(uri) as client:
            client.config_set("appendonly", "yes")
        assert store.add([event(1)]) == 1
        store.close()


def test_a_server_without_room_is_told_of_without_what_was_written() -> None:
    with redis_server() as uri, closing(open_store(uri, create=True)) as store, redis.Redis.from_url(uri) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match=r"cannot be used .*'maxmemory'") as told:
            store.add([Event("somebody", "e", "shirt", "like", 1.0, 1)])
        assert not {"somebody", "shirt"} & set(re.findall(r"\w+", str(told.value)))
