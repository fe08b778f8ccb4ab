"""Users and what they do in a Redis server: the store of several machines.

Events and impressions lie in a hash for each user, so that all of a user can be found and removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from serving.stores.base import Event, Impression, Item, Note, Tally, User
from serving.stores.history import after, loaded
from serving.stores.records import (
    FORMAT,
    key,
    pack,
    pack_event,
    pack_impression,
    pack_item,
    unkey,
    unpack,
    unpack_event,
    unpack_impression,
    unpack_item,
)
from serving.stores.scripts import FORGET, SHOW
from storage.errors import StoreError, UserError

# Before the id of a user:
USERS, EVENTS, IMPRESSIONS = b"tesserec:user:", b"tesserec:events:", b"tesserec:impressions:"
WHOSE = {EVENTS: b"tesserec:users-with-events", IMPRESSIONS: b"tesserec:users-with-impressions"}
FORGOTTEN = b"tesserec:forgotten"  # when, by user
FORMAT_KEY = b"tesserec:format"
COUNT_KEY = b"tesserec:users"  # how many there are; the server counts keys of one kind only by going through all keys
ITEMS, PICTURES = b"tesserec:items", b"tesserec:pictures"  # by id
VERSION, VERSIONS = b"tesserec:items-version", b"tesserec:items-versions"  # of all items, and the last one of each
ACTED = b"tesserec:acted:"  # before the id of a user: the answers that their events name
TALLIES = b"tesserec:tallies"  # a set of SINCE/RUN, before each of which two hashes by user have:
ANSWERS, ACTS = b"tesserec:answers:", b"tesserec:acts:"
NOTES, NOTE_VERSIONS = "tesserec:notes", "tesserec:note-versions"
LOADED = "tesserec:loaded"  # a set of SOURCE/PART
ROWS = 1_000  # users, and events of a user, that are read at a time
CONNECT_S, ANSWER_S = 2.0, 10.0  # what is waited for the server


class RedisStore:
    """Users in a database of a Redis server; threads share a pool of connections."""

    def __init__(self, uri: str) -> None:
        """Connects to redis://HOST:PORT/DATABASE, to rediss:// (TLS), or to a unix:// socket.

        Raises:
            UserError: no server answers there, or it does not let us in.
        """
        parts = urlsplit(uri)
        self._durable = False
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without a password
        with self._told():
            self._client = redis.Redis.from_url(
                uri,
                socket_connect_timeout=CONNECT_S,
                socket_timeout=ANSWER_S,
                retry=Retry(ExponentialBackoff(base=0.05, cap=0.5), 1),  # a connection that the server has closed
            )
            self._forget, self._show = (self._client.register_script(script) for script in (FORGET, SHOW))
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

    def add(self, events: Sequence[Event]) -> int:
        """Keeps events and what they change of their users, all or none; returns how many were new.

        An event of before its user was forgotten is not kept: it may come late.

        Raises:
            UserError: the server would lose them when it ends, or cannot be used.
        """
        of: dict[bytes, list[Event]] = {}
        for event in events:
            of.setdefault(key(event.user_id), []).append(event)
        if not of:
            return 0
        self._check_durable()
        users = list(of)

        def change(pipe: Any) -> int:
            records = pipe.mget([USERS + user for user in users])
            known = [pipe.hmget(EVENTS + user, [key(event.event_id) for event in of[user]]) for user in users]
            gone = pipe.hmget(FORGOTTEN, users)
            acts = {user: sorted({key(name) for each in of[user] if (name := each.acted_on)}) for user in users}
            before = {user: pipe.hmget(ACTED + user, ids) for user, ids in acts.items() if ids}
            shown = {user: pipe.hmget(IMPRESSIONS + user, acts[user]) for user in before}
            pipe.multi()
            added = 0
            for user, record, there, since in zip(users, records, known, gone, strict=True):
                first = dict[str, Event]()
                for event, old in zip(of[user], there, strict=True):
                    if old is None and (since is None or event.time > int(since)):
                        first.setdefault(event.event_id, event)
                if new := list(first.values()):
                    pipe.hset(EVENTS + user, mapping={key(event.event_id): pack_event(event) for event in new})
                    pipe.set(USERS + user, pack(after(None if record is None else unpack(record), new)))
                    pipe.incrby(COUNT_KEY, int(record is None))
                    pipe.sadd(WHOSE[EVENTS], user)
                    added += len(new)
                named = {key(name) for event in new if (name := event.acted_on)}
                for each, old, record in zip(acts[user], before.get(user, ()), shown.get(user, ()), strict=True):
                    if each in named and old is None:
                        pipe.hset(ACTED + user, each, 1)
                        answer = None if record is None else unpack_impression(user, each, record)
                        if answer is not None and answer.counts:
                            pipe.hincrby(ACTS + _tally_of(answer), user, 1)
            pipe.set(FORMAT_KEY, FORMAT)
            return added

        watched = (FORGOTTEN, *(kind + user for user in users for kind in (USERS, EVENTS, IMPRESSIONS)))
        run: Any = self._client.transaction  # its types know nothing of a function that returns something
        with self._told():
            added: int = run(change, *watched, value_from_callable=True)
        return added

    def show(self, impressions: Sequence[Impression]) -> None:
        """Keeps answers that users were given, likewise."""
        with self._told(), self._client.pipeline() as pipe:
            for each in impressions:
                user = key(each.user_id)
                keys = [FORGOTTEN, IMPRESSIONS + user, WHOSE[IMPRESSIONS], ACTED + user, TALLIES]
                name = _tally_of(each) if each.counts else b""
                place, record = key(each.recommendation_id), pack_impression(each)
                self._show(keys, [user, place, record, each.time, name, ANSWERS, ACTS], client=pipe)
            pipe.execute()

    def events(self, user_ids: Sequence[str]) -> list[Event]:
        """Returns the events of these users, in no order."""
        users = list({key(user_id) for user_id in user_ids})
        with self._told(), self._client.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.hgetall(EVENTS + user)
            found = pipe.execute()
        return [unpack_event(user, *row) for user, own in zip(users, found, strict=True) for row in own.items()]

    def tallies(self, since: int) -> dict[str, Tally]:
        """Returns by run what became of the answers that users were shown, of those with this `since`."""
        with self._told():
            names: Any = self._client.smembers(TALLIES)
        wanted = {unkey(run): name for name in names for start, _, run in [name.partition(b"/")] if int(start) == since}
        found = {run: self._tally(name) for run, name in wanted.items()}
        return {run: tally for run, tally in found.items() if tally.users}

    def drop_tallies(self, before: int) -> None:
        """Removes the counts, but no answers, of all that began to be served earlier, microseconds."""
        with self._told():
            names: Any = self._client.smembers(TALLIES)
            for name in names:
                if int(name.partition(b"/")[0]) < before:
                    self._client.delete(ANSWERS + name, ACTS + name)
                    self._client.srem(TALLIES, name)

    def every_event(self) -> Iterator[list[Event]]:
        """Yields all events, some users at a time."""
        yield from ([unpack_event(*row) for row in rows] for rows in self._every(EVENTS))

    def every_impression(self) -> Iterator[list[Impression]]:
        """Yields all impressions, some at a time."""
        yield from ([unpack_impression(*row) for row in rows] for rows in self._every(IMPRESSIONS))

    def forget(self, user_id: str, time: int) -> None:
        """Removes all that is kept of a user, and remembers that this was done at a time, in microseconds."""
        user = key(user_id)
        own = [USERS + user, EVENTS + user, IMPRESSIONS + user]
        keys = [COUNT_KEY, *own, *WHOSE.values(), FORGOTTEN, ACTED + user, TALLIES]
        self._check_durable()
        with self._told():
            self._forget(keys, [user, time, ANSWERS, ACTS])

    def forgotten(self) -> dict[str, int]:
        """Returns the users that were forgotten, and when."""
        with self._told():
            found: dict[Any, Any] = self._client.hgetall(FORGOTTEN)
        return {unkey(user): int(time) for user, time in found.items()}

    def items_version(self) -> int:
        """Returns the version, 0 before the first write."""
        with self._told():
            return int(self._client.get(VERSION) or 0)

    def items_after(self, version: int) -> tuple[int, list[Item]]:
        """Returns the version, and what items were written since another one, as they are now, oldest write first."""
        now = self.items_version()
        with self._told():
            ids: list[Any] = self._client.zrangebyscore(VERSIONS, version + 1, now)
            records: list[Any] = self._client.hmget(ITEMS, ids) if ids else []
        return now, [unpack_item(*row) for row in zip(ids, records, strict=True)]

    def keep_item(self, item: Item, *, version: int, picture: bytes | None = None) -> bool:
        """Keeps an item in place of what was kept of it, unless others have written since a version; says whether.

        Raises:
            UserError: the server would lose it when it ends, or cannot be used.
        """
        item_id = key(item.item_id)

        def change(pipe: Any) -> bool:
            now = int(pipe.get(VERSION) or 0)
            pipe.multi()
            if now != version:
                return False
            pipe.set(VERSION, version + 1)
            pipe.hset(ITEMS, item_id, pack_item(item))
            pipe.zadd(VERSIONS, {item_id: version + 1})
            if picture is not None:
                pipe.hdel(PICTURES, item_id)
            if picture:
                pipe.hset(PICTURES, item_id, picture)
            pipe.set(FORMAT_KEY, FORMAT)
            return True

        self._check_durable()
        run: Any = self._client.transaction  # see `add`
        with self._told():
            kept: bool = run(change, VERSION, value_from_callable=True)
        return kept

    def item_picture(self, item_id: str) -> bytes | None:
        """Returns the picture that is kept of an item."""
        with self._told():
            found: Any = self._client.hget(PICTURES, key(item_id))
        return found

    def write(self, user_ids: Sequence[str], users: Sequence[User], *, until: int, replace: bool = True) -> None:
        """Adds users as a log knows them, and replaces those that it has, unless it should not; all of them or none.

        What the store's own events later than `until`, the end of the log in microseconds, change of them is added, as
        are likes that came in later and that the log lacks; what they dislike stays. Whose rankers have learned a
        user's id becomes known in either case. Who was forgotten stays so.
        """
        ids = [key(user_id) for user_id in user_ids]
        if not ids:
            return

        def change(pipe: Any) -> None:
            there = pipe.mget([USERS + user for user in ids])
            gone = pipe.hmget(FORGOTTEN, ids)
            active = [user for user, acts in zip(ids, pipe.smismember(WHOSE[EVENTS], ids), strict=True) if acts]
            own = {user: [unpack_event(user, *row) for row in pipe.hgetall(EVENTS + user).items()] for user in active}
            records, more = {FORMAT_KEY: b"%d" % FORMAT}, 0
            for user_id, user, old, left in zip(ids, users, there, gone, strict=True):
                if left is None:
                    known, acts = None if old is None else unpack(old), own.get(user_id, [])
                    records[USERS + user_id] = pack(loaded(user, known, acts, until=until, replace=replace))
                    more += old is None
            pipe.multi()
            pipe.mset(records)
            pipe.incrby(COUNT_KEY, more)

        with self._told():
            self._client.transaction(change, FORGOTTEN, *(kind + user for user in ids for kind in (USERS, EVENTS)))

    def notes(self, prefix: str) -> dict[str, Note]:
        """Returns the notes whose names begin so."""
        with self._told(), self._client.pipeline() as pipe:
            pipe.hgetall(NOTES)
            pipe.hgetall(NOTE_VERSIONS)
            texts, versions = pipe.execute()
        return {
            unkey(name): Note(int(versions[name]), text.decode())
            for name, text in texts.items()
            if name.startswith(key(prefix))
        }

    def keep_note(self, name: str, text: str, *, version: int | None = None) -> bool:
        """Writes a note, unless one of another version than a given one is there (0: none); says whether."""

        def change(pipe: Any) -> bool:
            there = int(pipe.hget(NOTE_VERSIONS, name) or 0)
            pipe.multi()
            if version not in (None, there):
                return False
            pipe.hset(NOTES, name, text)
            pipe.hset(NOTE_VERSIONS, name, there + 1)
            pipe.set(FORMAT_KEY, FORMAT)
            return True

        run: Any = self._client.transaction  # see `add`
        with self._told():
            kept: bool = run(change, NOTE_VERSIONS, value_from_callable=True)
        return kept

    def drop_note(self, name: str) -> None:
        """Removes a note."""
        with self._told(), self._client.pipeline() as pipe:
            pipe.hdel(NOTES, name)
            pipe.hdel(NOTE_VERSIONS, name)
            pipe.execute()

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

    def _every(self, kind: bytes) -> Iterator[list[tuple[bytes, bytes, bytes]]]:
        """Yields user, id and record of what all users have."""
        cursor = 0
        while True:
            with self._told():
                cursor, users = self._client.sscan(WHOSE[kind], cursor, count=ROWS)
            # In the hashes of users who are not through; all visitors share one.
            places: dict[Any, int] = dict.fromkeys(users, 0)
            while places:
                with self._told(), self._client.pipeline(transaction=False) as pipe:
                    for user, place in places.items():
                        pipe.hscan(kind + user, place, count=ROWS)
                    found = dict(zip(places, pipe.execute(), strict=True))
                yield [(user, *row) for user, (_, own) in found.items() for row in own.items()]
                places = {user: place for user, (place, _) in found.items() if place}
            if not cursor:
                return

    def _tally(self, name: bytes) -> Tally:
        with self._told():
            answers: Any = self._client.hgetall(ANSWERS + name)
            acts: Any = self._client.hgetall(ACTS + name)
        n, c = (np.array([int(kind.get(user, 0)) for user in answers], np.int64) for kind in (answers, acts))
        return Tally(*(int(number) for number in (len(n), n.sum(), c.sum(), n @ n, n @ c, c @ c)))

    def _check_durable(self) -> None:
        if self._durable:
            return
        with self._told():
            self._durable = bool(self._client.info("persistence").get("aof_enabled"))
        if not self._durable:
            raise StoreError(
                f"{self._shown} keeps events in memory alone, and would lose them when it ends: start the server with "
                "`appendonly yes`."
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, ValueError) as error:
            # before this stands a command with all that it holds
            reason = str(error).rpartition(" of pipeline caused error: ")[2].rstrip(".")
            raise StoreError(
                f"The store {self._shown} cannot be used ({reason}): see that a Redis server answers there, or name "
                "another store."
            ) from error


def _tally_of(answer: Impression) -> bytes:
    return b"%d/" % answer.since + key(answer.run)
