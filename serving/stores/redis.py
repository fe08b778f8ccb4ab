"""Users in a Redis server: the store of several machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from serving.stores.base import User
from serving.stores.records import FORMAT, key, pack, unpack
from storage.errors import UserError

USERS = b"tesserec:user:"  # begins the keys of users
FORMAT_KEY = b"tesserec:format"
COUNT_KEY = b"tesserec:users"  # how many there are; the server counts keys of one kind only by going through all keys
LOADED = "tesserec:loaded"  # a set of SOURCE/PART
WRITE = """
for i = 3, #KEYS do
  redis.call('INCRBY', KEYS[2], 1 - redis.call('EXISTS', KEYS[i]))
  redis.call('SET', KEYS[i], ARGV[i])
end
redis.call('SET', KEYS[1], ARGV[1])
"""  # a script is one step to everyone else
CONNECT_S, ANSWER_S = 2.0, 10.0  # what is waited for the server


class RedisStore:
    """Users in a database of a Redis server; threads share a pool of connections."""

    def __init__(self, uri: str) -> None:
        """Connects to redis://HOST:PORT/DATABASE, to rediss:// (TLS), or to a unix:// socket.

        Raises:
            UserError: no server answers there, or it does not let us in.
        """
        parts = urlsplit(uri)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without a password
        with self._told():
            self._client = redis.Redis.from_url(
                uri,
                socket_connect_timeout=CONNECT_S,
                socket_timeout=ANSWER_S,
                retry=Retry(ExponentialBackoff(base=0.05, cap=0.5), 1),  # a connection that the server has closed
            )
            self._write = self._client.register_script(WRITE)
            version = self._client.get(FORMAT_KEY)
        if version not in (None, b"%d" % FORMAT):
            raise UserError(f"{self._shown} is a store of another version of tesserec: use another database there.")

    def read(self, user_ids: Sequence[str]) -> list[User | None]:
        """Returns the users of these ids; None for one that it does not have."""
        if not user_ids:
            return []
        with self._told():
            records: list[Any] = self._client.mget([USERS + key(user_id) for user_id in user_ids])
        return [None if record is None else unpack(record) for record in records]

    def write(self, user_ids: Sequence[str], users: Sequence[User]) -> None:
        """Adds users, or replaces those that it has; all of them or none."""
        records = [(USERS + key(user_id), pack(user)) for user_id, user in zip(user_ids, users, strict=True)]
        keys = [FORMAT_KEY, COUNT_KEY, *(name for name, _ in records)]
        values = [b"%d" % FORMAT, b"", *(record for _, record in records)]
        with self._told():
            self._write(keys, values)

    def begin_load(self, source: str) -> set[int]:
        """Returns the parts of a source that are in the store whole, and forgets those of any other source."""
        with self._told():
            marks: set[Any] = self._client.smembers(LOADED)
            ours = {mark for mark in marks if mark.startswith(f"{source}/".encode())}
            if others := marks - ours:
                self._client.srem(LOADED, *others)
        return {int(mark.rpartition(b"/")[2]) for mark in ours}

    def finish_part(self, source: str, part: int) -> None:
        """Remembers that a part of a source is in the store whole."""
        with self._told():
            self._client.sadd(LOADED, f"{source}/{part}")

    def count(self) -> int:
        """Returns the number of users."""
        with self._told():
            return int(self._client.get(COUNT_KEY) or 0)

    def close(self) -> None:
        """Lets go of the connections."""
        self._client.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, ValueError) as error:
            raise UserError(
                f"The store {self._shown} cannot be used ({str(error).rstrip('.')}): see that a Redis server answers "
                "there, or name another store."
            ) from error
