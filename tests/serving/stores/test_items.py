"""What every store does with items, whatever it keeps them in."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from serving.stores.base import Item, LoadableStore
from serving.stores.opening import open_store
from storage.errors import UserError
from tests.conftest import REPOSITORY
from tests.stores import at_once, redis_server

WRITER = """
import sys
import numpy as np
from serving.stores.base import Item
from serving.stores.opening import open_store
store = open_store(sys.argv[1], create=True)
first = store.items_version()
for number in range(first, first + 1_000_000):
    item = Item(f"item {number}", "shown", {"title": "é"}, np.full(3, number, np.float32))
    assert store.keep_item(item, version=number, picture=b"picture %d" % number)
    print(number, flush=True)
"""


@pytest.fixture
def store(store_uri: str) -> Iterator[LoadableStore]:
    opened = open_store(store_uri, create=True)
    yield opened
    opened.close()


def item(item_id: str, state: str = "shown", **about: object) -> Item:
    return Item(item_id, state, about, np.arange(3, dtype=np.float32) if about else np.empty(0, np.float32))


def plain(found: tuple[int, list[Item]]) -> tuple[int, list[tuple]]:
    return found[0], [(*each[:3], each.vector.tolist()) for each in found[1]]


def test_items_are_kept_with_a_version_for_each_write(store: LoadableStore, store_uri: str) -> None:
    assert (store.items_version(), store.items_after(0)) == (0, (0, []))
    first, second = item("a\0é", title="A", tags=["x"]), item("b", "hidden")
    assert store.keep_item(first, version=0, picture=b"\xff picture")
    assert store.keep_item(second, version=1)
    assert plain(store.items_after(0)) == plain((2, [first, second]))
    assert plain(store.items_after(1)) == plain((2, [second]))
    other = open_store(store_uri, create=True)
    assert (other.items_version(), other.item_picture("a\0é"), other.item_picture("b")) == (2, b"\xff picture", None)
    again = item("a\0é", title="B")
    assert other.keep_item(again, version=2)
    assert plain(store.items_after(0)) == plain((3, [second, again]))
    assert store.item_picture("a\0é") == b"\xff picture"
    assert store.keep_item(item("a\0é", "deleted"), version=3, picture=b"")
    assert other.item_picture("a\0é") is None
    assert other.items_after(0)[1][0].vector.dtype == np.float32
    other.close()


def test_who_has_not_seen_the_last_write_writes_nothing(store: LoadableStore) -> None:
    assert store.keep_item(item("a", title="A"), version=0, picture=b"A")
    for version in (0, 2):
        assert not store.keep_item(item("a", title="B"), version=version, picture=b"B")
    assert (store.items_version(), store.items_after(0)[1][0].about) == (1, {"title": "A"})
    assert store.item_picture("a") == b"A"


def test_of_writers_at_a_time_each_writes_on_what_the_others_wrote(store_uri: str) -> None:
    def work(number: int) -> None:
        own = open_store(store_uri, create=True)
        for turn in range(10):
            new = item(f"item {number} {turn}", title="t")
            while not own.keep_item(new, version=own.items_version()):
                pass
        own.close()

    at_once(work, 5)
    store = open_store(store_uri, create=True)
    version, items = store.items_after(0)
    assert (version, len({each.item_id for each in items})) == (50, 50)
    store.close()


def test_a_killed_writer_keeps_what_it_was_told_is_kept(store_uri: str) -> None:
    told = list[int]()
    for calls in (1, 20):
        command = [sys.executable, "-c", WRITER, store_uri]
        writer = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        told += [int(writer.stdout.readline()) for _ in range(calls)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.communicate()[0].split()]
    store = open_store(store_uri, create=True)
    version, items = store.items_after(0)
    assert [each.vector.tolist() for each in items] == [[number] * 3 for number in range(version)]
    assert [store.item_picture(each.item_id) for each in items] == [b"picture %d" % n for n in range(version)]
    assert set(told) <= set(range(version))
    store.close()


def test_a_server_that_would_lose_items_takes_none() -> None:
    with redis_server("--appendonly", "no") as uri:
        store = open_store(uri, create=True)
        with pytest.raises(UserError, match="start the server with `appendonly yes`"):
            store.keep_item(item("a"), version=0)
        store.close()
