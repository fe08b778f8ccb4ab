"""What every store of users does, whatever it keeps them in."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.stores.base import LoadableStore, User
from serving.stores.opening import open_store
from tests.conftest import REPOSITORY
from tests.stores import at_once, holds, same, user

IDS = [f"user {number}" for number in range(200)]
INT64 = st.integers(-(2**63), 2**63 - 1)
ANY_ID = st.text(st.characters(exclude_categories=()), min_size=1)  # half surrogate pairs and NUL, too
EVENTS = st.lists(st.tuples(INT64, INT64), max_size=20)
TRAINED = st.lists(INT64, unique=True, max_size=4)
WRITER = """
import sys
from serving.stores.opening import open_store
from tests.stores import user
store, first = open_store(sys.argv[1], create=True), int(sys.argv[2])
for number in range(first, first + 1_000_000):
    store.write([f"user {i}" for i in range(200)], [user(number, 100)] * 200, until=0)
    print(number, flush=True)
"""


@pytest.fixture
def store(store_uri: str) -> Iterator[LoadableStore]:
    opened = open_store(store_uri, create=True)
    yield opened
    opened.close()


def test_what_nobody_wrote_is_not_there(store: LoadableStore) -> None:
    assert store.count() == 0
    assert store.read(["nobody", ""]) == [None, None]
    assert store.read([]) == []
    store.write([], [], until=0)
    assert store.count() == 0


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ANY_ID, st.tuples(EVENTS, st.integers(0, 2**62), TRAINED), max_size=8))
def test_what_is_written_is_read(store: LoadableStore, drawn: dict[str, tuple]) -> None:
    salt = uuid4()  # users of this example alone
    users = {
        f"{salt}{name}": User(
            *np.array(events, np.int64).reshape(-1, 2).T.copy(),
            total,
            tuple(trained),
            np.array(events[:1], np.int64)[:, 0] if events else np.empty(0, np.int64),
        )
        for name, (events, total, trained) in drawn.items()
    }
    store.write(list(users), list(users.values()), until=0)
    assert all(map(same, store.read(list(users)), users.values()))


def test_ids_that_look_alike_are_not_one(store: LoadableStore) -> None:
    names = ["é", "e\u0301", "a", "A", "a ", "a\0", "a\0b", "1", "01", "\ud800", "\U0001f9e6", "*", "%", ""]
    store.write(names, [user(number) for number in range(len(names))], until=0)
    assert holds(store, {name: user(number) for number, name in enumerate(names)})


def test_answers_come_in_the_order_of_the_ids(store: LoadableStore) -> None:
    store.write(["a", "b"], [user(1), user(2)], until=0)
    found = store.read(["b", "?", "a", "b"])
    assert all(map(same, found, [user(2), None, user(1), user(2)]))


def test_a_user_who_is_written_again_is_replaced(store: LoadableStore) -> None:
    store.write(["a", "b"], [user(1, 50), user(2)], until=0)
    store.write(["a", "c"], [user(3, 0), user(4)], until=0)
    assert holds(store, {"a": user(3, 0), "b": user(2), "c": user(4)})


def test_who_has_learned_a_user_stays_known_for_a_few_runs(store: LoadableStore) -> None:
    for number in (1, 2, 1, 3):
        store.write(["a"], [user(5)._replace(trained=(number,))], until=0)
    store.write(["a", "b"], [user(6)._replace(trained=()), user(7)], until=0)
    first, second = store.read(["a", "b"])
    assert same(first, user(6)._replace(trained=(3, 1, 2)))
    assert same(second, user(7))
    for number in range(9):
        store.write(["a"], [user(5)._replace(trained=(number,))], until=0)
    assert store.read(["a"])[0].trained == (8, 7, 6, 5)


def test_an_older_log_adds_users_and_takes_nothing_away(store: LoadableStore) -> None:
    store.write(["a"], [user(1, 9)], until=0)
    store.write(["a", "b"], [user(2)._replace(trained=(5,)), user(3)], until=0, replace=False)
    assert holds(store, {"a": user(1, 9)._replace(trained=(5, 7)), "b": user(3)})


def test_ten_thousand_users_at_once(store: LoadableStore) -> None:
    users = {f"user {number}": user(number, number % 50) for number in range(10_000)}
    store.write(list(users), list(users.values()), until=0)
    assert holds(store, users)


def test_users_and_marks_are_there_when_it_is_opened_again(store: LoadableStore, store_uri: str) -> None:
    store.write(["a"], [user(1)], until=0)
    store.finish_part("run", 4)
    store.close()
    again = open_store(store_uri)
    assert holds(again, {"a": user(1)})
    assert again.begin_load("run") == {4}
    again.close()


def test_it_remembers_the_parts_of_one_source(store: LoadableStore) -> None:
    assert store.begin_load("one") == set()
    for part in (0, 12, 0):
        store.finish_part("one", part)
    assert store.begin_load("one") == {0, 12}
    assert store.begin_load("other") == set()  # which replaces what the first one wrote
    assert store.begin_load("one") == set()
    assert store.count() == 0


def test_readers_beside_a_writer_see_whole_batches(store: LoadableStore, store_uri: str) -> None:
    store.write(IDS, [user(0)] * len(IDS), until=0)
    wrong: list[object] = []
    done = threading.Event()

    def look(own: LoadableStore) -> None:
        last = 0
        try:
            while not done.is_set():
                found = {one.events for one in own.read(IDS) if one is not None}
                if len(found) != 1 or min(found) < last:
                    wrong.append(found)
                last = min(found)
        except Exception as error:  # noqa: BLE001 - the thread's
            wrong.append(error)

    others = [open_store(store_uri) for _ in range(2)]
    readers = [threading.Thread(target=look, args=[own]) for own in (store, *others)]
    for reader in readers:
        reader.start()
    for number in range(1, 40):
        store.write(IDS, [user(number)] * len(IDS), until=0)
    done.set()
    for reader in readers:
        reader.join()
    for own in others:
        own.close()
    assert wrong == []


def test_writers_wait_for_each_other(store_uri: str) -> None:
    def fill(number: int) -> None:
        own = open_store(store_uri, create=True)
        for batch in range(10):
            names = [f"{number} {batch} {each}" for each in range(20)]
            own.write(names, [user(batch)] * 20, until=0)
        own.close()

    at_once(fill, 6)
    store = open_store(store_uri)
    assert store.count() == 6 * 10 * 20
    store.close()


def test_a_killed_writer_leaves_whole_batches(store_uri: str) -> None:
    first = 1
    for batches in (1, 7, 30):
        command = [sys.executable, "-c", WRITER, store_uri, str(first)]
        writer = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for last, line in zip(count(first), writer.stdout, strict=False):
            assert int(line) == last
            if last == first + batches:
                break
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.communicate()[0].split()]
        store = open_store(store_uri)
        found = store.read(IDS)
        numbers = {one.events for one in found if one is not None}
        assert len(numbers) == 1
        assert numbers.pop() in range(max([last, *told]), max([last, *told]) + 2)
        assert all(same(one, found[0]) for one in found)
        assert store.count() == len(IDS)
        store.close()
        first = last + len(told) + 10
