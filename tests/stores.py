"""Stores that tests write to: a Redis server of their own, and users."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import redis

from serving.stores.base import User, UserStore

INSTALL = "apt-get install redis-server"


@contextmanager
def redis_server(*options: str) -> Iterator[str]:
    """Starts a server until the block ends; gives its address, a socket. Skips the test where there is none to start.

    In CI, which installs it, that is a failure.
    """
    program = shutil.which("redis-server")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no redis-server: {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:  # a socket's path is short
        socket = f"{folder}/socket"
        command = [
            program,
            "--port",
            "0",
            "--unixsocket",
            socket,
            "--save",
            "",
            "--appendonly",
            "yes",
            "--dir",
            folder,
            *options,
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not os.path.exists(socket):  # noqa: PTH110
                assert server.poll() is None, command
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            server.kill()
            server.wait()


def emptied(uri: str) -> str:
    """Removes all that a Redis server holds; returns its address."""
    with redis.Redis.from_url(uri) as client:
        client.flushall()
    return uri


def user(number: int, events: int = 3) -> User:
    """A user who is all about a number."""
    items = np.arange(number, number + events, dtype=np.int64) * 7919
    return User(items, items + 1_000_000, number, (7,), items[:1] * 3)


def same(one: User | None, other: User | None) -> bool:
    """Whether two users are equal, types of the arrays included."""
    if one is None or other is None:
        return one is other
    arrays = zip((*one[:2], one.disliked), (*other[:2], other.disliked), strict=True)
    return one[2:4] == other[2:4] and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


def holds(store: UserStore, users: dict[str, User]) -> bool:
    """Whether a store has these users and no other."""
    found = store.read(list(users))
    return store.count() == len(users) and all(map(same, found, users.values()))


def at_once(work: Callable[[int], None], threads: int) -> None:
    """Calls a function with the numbers below `threads`, each on a thread of its own; none may fail."""
    failed: list[Exception] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:  # noqa: BLE001 - the thread's
            failed.append(error)

    running = [threading.Thread(target=guarded, args=[number]) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert failed == []
