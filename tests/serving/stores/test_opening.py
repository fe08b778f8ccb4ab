"""Stores that cannot be opened: one sentence each, and nothing of others is touched."""

from __future__ import annotations

import socket
import sqlite3
import threading
from pathlib import Path

import pytest
import redis

from serving.stores.opening import open_store
from storage.errors import UserError
from tests.stores import emptied, holds, redis_server, user


@pytest.mark.parametrize(
    "uri", ["", "users.db", "sqlite:", "sqlite:s3://bucket/users.db", "postgres://u:secret@host/db"]
)
def test_an_address_of_another_kind(uri: str) -> None:
    with pytest.raises(UserError, match="is no store: write sqlite:PATH") as told:
        open_store(uri)
    assert "secret" not in str(told.value)


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no store at .*typo.db: fill it with `tesserec load RUN --store"):
        open_store(f"sqlite:{tmp_path}/typo.db")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_file_are_made(tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path}/new/folder/users.db", create=True)
    store.write(["a"], [user(1)], until=0)
    assert holds(store, {"a": user(1)})
    store.close()


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def fill(number: int, gate: threading.Barrier, uri: str) -> None:
        gate.wait()
        try:
            store = open_store(uri, create=True)
            store.write([f"{number}"], [user(number)], until=0)
            store.close()
        except Exception as error:  # noqa: BLE001 - the thread's
            failed.append(error)

    for attempt in range(20):
        uri, gate = f"sqlite:{tmp_path}/{attempt}.db", threading.Barrier(8)
        threads = [threading.Thread(target=fill, args=[number, gate, uri]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = open_store(uri)
        assert failed == []
        assert holds(store, {f"{number}": user(number) for number in range(8)})
        store.close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".db"}  # nothing else is left


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "users.db", tmp_path):
        with pytest.raises(UserError, match=r"cannot be used .*: see that its folder can be written"):
            open_store(f"sqlite:{path}", create=True)


def test_a_file_that_is_no_store_stays_as_it_is(tmp_path: Path) -> None:
    empty, text, other = (tmp_path / name for name in ("empty", "notes.txt", "other.db"))
    empty.touch()
    text.write_text("no database at all, and long enough to be looked at. " * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()
    for path in (empty, text, other):
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"is no store of tesserec: name one, or a file that is not there yet\."):
            open_store(f"sqlite:{path}")
        assert path.read_bytes() == before


def test_a_file_of_another_version(tmp_path: Path) -> None:
    open_store(f"sqlite:{tmp_path}/users.db", create=True).close()
    with sqlite3.connect(tmp_path / "users.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="is a store of another version of tesserec"):
        open_store(f"sqlite:{tmp_path}/users.db")


def test_no_server_is_there() -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"The store redis://{address}/0 cannot be used .*refused") as told:
            open_store(f"redis://someone:secret@{address}/0?socket_timeout=1")
    assert "secret" not in str(told.value)
    with pytest.raises(UserError, match="see that a Redis server answers there"):
        open_store("redis://127.0.0.1:port/0")


def test_a_server_with_a_password_on_a_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with redis_server("--requirepass", "secret", "--port", str(port)):
        store = open_store(f"redis://:secret@127.0.0.1:{port}/3")
        store.write(["a"], [user(1)], until=0)
        assert holds(store, {"a": user(1)})
        store.close()
        for uri in (f"redis://127.0.0.1:{port}/3", f"redis://:wrong@127.0.0.1:{port}/3"):
            with pytest.raises(UserError, match=f"redis://127.0.0.1:{port}/3 cannot be used") as told:
                open_store(uri)
            assert "wrong" not in str(told.value).replace("WRONGPASS", "")


def test_a_server_that_went_away_and_came_back_empty(redis_uri: str) -> None:
    store = open_store(emptied(redis_uri))
    with redis.Redis.from_url(redis_uri) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert store.read(["a"]) == [None]  # over a new connection
    store.close()


def test_a_server_of_another_version_and_keys_of_others(redis_uri: str) -> None:
    emptied(redis_uri)
    with redis.Redis.from_url(redis_uri) as client:
        client.set("session:1", "of another program")
        store = open_store(redis_uri)
        store.write(["a"], [user(1)], until=0)
        assert holds(store, {"a": user(1)})
        store.close()
        client.set("tesserec:format", "99")
    with pytest.raises(UserError, match="is a store of another version of tesserec"):
        open_store(redis_uri)
