"""Users and what they do in a SQLite file: the store of one machine, which needs no server.

The file is in WAL mode: any number of processes read while one writes. It has to be on a local disk. A commit is on the
disk before it returns, so that it outlives a loss of power, too.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from storage import files
from storage.errors import StoreError, UserError

APPLICATION = int.from_bytes(b"tess", "big")  # what SQLite calls the application_id of a file
BUSY_S = 30.0  # how long a writer waits for another one
MOST_IDS = 32_766  # parameters of a query
ROWS = 10_000  # of a table that are read at a time
PER_USER = "(user BLOB, id BLOB, record BLOB NOT NULL, PRIMARY KEY (user, id)) WITHOUT ROWID"
INSERT = """INSERT OR IGNORE INTO {table} SELECT ?1, ?2, ?3
    WHERE NOT EXISTS (SELECT 1 FROM forgotten WHERE user = ?1 AND time >= ?4)"""
SCHEMA = (
    "PRAGMA journal_mode = WAL",
    "CREATE TABLE users (id BLOB PRIMARY KEY, record BLOB NOT NULL)",
    f"CREATE TABLE events {PER_USER}",
    f"CREATE TABLE impressions {PER_USER}",
    "CREATE TABLE acted (user BLOB, id BLOB, PRIMARY KEY (user, id)) WITHOUT ROWID",  # answers that events name
    """CREATE TABLE tallies (user BLOB, since INTEGER, run TEXT, answers INTEGER NOT NULL DEFAULT 0,
        acted INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (user, since, run)) WITHOUT ROWID""",
    "CREATE TABLE notes (name TEXT PRIMARY KEY, version INTEGER NOT NULL, text TEXT NOT NULL)",
    "CREATE TABLE forgotten (user BLOB PRIMARY KEY, time INTEGER NOT NULL)",
    "CREATE TABLE loaded (source TEXT, part INTEGER, PRIMARY KEY (source, part))",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
)
ITEMS = (  # made where they are missing: a store of before they could be posted stays as it is
    "CREATE TABLE IF NOT EXISTS items (id BLOB PRIMARY KEY, version INTEGER NOT NULL UNIQUE, record BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS pictures (id BLOB PRIMARY KEY, picture BLOB NOT NULL)",
)


class SqliteStore:
    """Users in a SQLite file; threads share a connection to read and one to write, and take turns at each."""

    def __init__(self, path: str, *, create: bool) -> None:
        """Opens the file; where there is none, makes it and its folder if it may.

        Raises:
            UserError: the file is missing or no store, or cannot be read or written.
        """
        self._path = files.absolute(path)
        with self._told():
            if not Path(self._path).exists():
                if not create:
                    raise UserError(
                        f"There is no store at {self._path}: fill it with `tesserec load RUN --store sqlite:PATH`."
                    )
                _make(Path(self._path))
            self._reader, self._writer = _Shared(self._path, "BEGIN"), _Shared(self._path, "BEGIN IMMEDIATE")
            application, version = (
                self._reader.one.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
        if application != APPLICATION:
            raise self._no_store()
        if version != FORMAT:
            raise UserError(f"{self._path} is a store of another version of tesserec: load the run into a new file.")
        with self._told():
            for statement in ITEMS:
                self._writer.one.execute(statement)

    def read(self, user_ids: Sequence[str]) -> list[User | None]:
        """Returns the users of these ids; None for one that it does not have."""
        with self._told(), self._reader as connection:
            found = _records(connection, [key(user_id) for user_id in user_ids])
        return [unpack(found[one]) if (one := key(user_id)) in found else None for user_id in user_ids]

    def add(self, events: Sequence[Event]) -> int:
        """Keeps events and what they change of their users, all or none; returns how many were new.

        An event of before its user was forgotten is not kept: it may come late.
        """
        added = 0
        with self._told(), self._writer as connection:
            ordered = sorted(events, key=lambda event: key(event.user_id))
            users = _records(connection, list({key(event.user_id) for event in ordered}))
            for user, own in groupby(ordered, key=lambda event: key(event.user_id)):
                new = [
                    event
                    for event in own
                    if connection.execute(
                        INSERT.format(table="events"), [user, key(event.event_id), pack_event(event), event.time]
                    ).rowcount
                ]
                if new:
                    _put(connection, user, after(unpack(users[user]) if user in users else None, new))
                    added += len(new)
                for answer in {event.acted_on for event in new} - {None}:
                    _act(connection, user, key(answer))
        return added

    def show(self, impressions: Sequence[Impression]) -> None:
        """Keeps answers that users were given, likewise."""
        with self._told(), self._writer as connection:
            for each in impressions:
                place = [key(each.user_id), key(each.recommendation_id)]
                row = [*place, pack_impression(each), each.time]
                if connection.execute(INSERT.format(table="impressions"), row).rowcount and each.counts:
                    acted = connection.execute("SELECT 1 FROM acted WHERE (user, id) = (?, ?)", place).fetchone()
                    _count(connection, place[0], each, answers=1, acted=int(acted is not None))

    def events(self, user_ids: Sequence[str]) -> list[Event]:
        """Returns the events of these users, in no order."""
        found: list[Event] = []
        for user in {key(user_id) for user_id in user_ids}:
            with self._told(), self._reader as connection:
                found += _events(connection, user)
        return found

    def tallies(self, since: int) -> dict[str, Tally]:
        """Returns by run what became of the answers that users were shown, of those with this `since`."""
        sums = "count(*), sum(answers), sum(acted), sum(answers * answers), sum(answers * acted), sum(acted * acted)"
        query = f"SELECT run, {sums} FROM tallies WHERE since = ? AND answers > 0 GROUP BY run"  # noqa: S608 - ours
        with self._told(), self._reader as connection:
            return {run: Tally(*counts) for run, *counts in connection.execute(query, [since])}

    def drop_tallies(self, before: int) -> None:
        """Removes the counts, but no answers, of all that began to be served earlier, microseconds."""
        with self._told(), self._writer as connection:
            connection.execute("DELETE FROM tallies WHERE since < ?", [before])

    def every_event(self) -> Iterator[list[Event]]:
        """Yields all events, some users at a time."""
        yield from ([unpack_event(*row) for row in rows] for rows in self._every("events"))

    def every_impression(self) -> Iterator[list[Impression]]:
        """Yields all impressions, some at a time."""
        yield from ([unpack_impression(*row) for row in rows] for rows in self._every("impressions"))

    def forget(self, user_id: str, time: int) -> None:
        """Removes all that is kept of a user, and remembers that this was done at a time, in microseconds."""
        user = key(user_id)
        with self._told(), self._writer as connection:
            connection.execute("DELETE FROM users WHERE id = ?", [user])
            for table in ("events", "impressions", "acted", "tallies"):
                connection.execute(f"DELETE FROM {table} WHERE user = ?", [user])  # noqa: S608 - ours
            connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", [user, time])
        with self._told(), self._writer.lock:
            self._writer.one.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the log still holds what was removed

    def forgotten(self) -> dict[str, int]:
        """Returns the users that were forgotten, and when."""
        with self._told(), self._reader as connection:
            return {unkey(user): time for user, time in connection.execute("SELECT user, time FROM forgotten")}

    def items_version(self) -> int:
        """Returns the version, 0 before the first write."""
        with self._told(), self._reader as connection:
            return _version(connection)

    def items_after(self, version: int) -> tuple[int, list[Item]]:
        """Returns the version, and what items were written since another one, as they are now, oldest write first."""
        query = "SELECT id, record FROM items WHERE version > ? ORDER BY version"
        with self._told(), self._reader as connection:
            return _version(connection), [unpack_item(*row) for row in connection.execute(query, [version])]

    def keep_item(self, item: Item, *, version: int, picture: bytes | None = None) -> bool:
        """Keeps an item in place of what was kept of it, unless others have written since a version; says whether."""
        item_id = key(item.item_id)
        with self._told(), self._writer as connection:
            if _version(connection) != version:
                return False
            connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", [item_id, version + 1, pack_item(item)])
            if picture is not None:
                connection.execute("DELETE FROM pictures WHERE id = ?", [item_id])
            if picture:
                connection.execute("INSERT INTO pictures VALUES (?, ?)", [item_id, picture])
        return True

    def item_picture(self, item_id: str) -> bytes | None:
        """Returns the picture that is kept of an item."""
        with self._told(), self._reader as connection:
            found = connection.execute("SELECT picture FROM pictures WHERE id = ?", [key(item_id)]).fetchone()
        return None if found is None else found[0]

    def write(self, user_ids: Sequence[str], users: Sequence[User], *, until: int, replace: bool = True) -> None:
        """Adds users as a log knows them, and replaces those that it has, unless it should not; all of them or none.

        What the store's own events later than `until`, the end of the log in microseconds, change of them is added, as
        are likes that came in later and that the log lacks; what they dislike stays. Whose rankers have learned a
        user's id becomes known in either case. Who was forgotten stays so.
        """
        with self._told(), self._writer as connection:
            gone = {user for (user,) in connection.execute("SELECT user FROM forgotten")}
            there = _records(connection, [key(user_id) for user_id in user_ids])
            for user_id, user in zip(user_ids, users, strict=True):
                if (place := key(user_id)) not in gone:
                    old = unpack(there[place]) if place in there else None
                    own = _events(connection, place)
                    _put(connection, place, loaded(user, old, own, until=until, replace=replace))

    def notes(self, prefix: str) -> dict[str, Note]:
        """Returns the notes whose names begin so."""
        query = "SELECT name, version, text FROM notes WHERE substr(name, 1, ?) = ?"
        with self._told(), self._reader as connection:
            return {name: Note(*note) for name, *note in connection.execute(query, [len(prefix), prefix])}

    def keep_note(self, name: str, text: str, *, version: int | None = None) -> bool:
        """Writes a note, unless one of another version than a given one is there (0: none); says whether."""
        with self._told(), self._writer as connection:
            found = connection.execute("SELECT version FROM notes WHERE name = ?", [name]).fetchone()
            there = 0 if found is None else found[0]
            if version not in (None, there):
                return False
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", [name, there + 1, text])
        return True

    def drop_note(self, name: str) -> None:
        """Removes a note."""
        with self._told(), self._writer as connection:
            connection.execute("DELETE FROM notes WHERE name = ?", [name])

    def begin_load(self, source: str) -> set[int]:
        """Returns the parts of a source that are in the store whole, and forgets those of any other source."""
        with self._told(), self._writer as connection:
            connection.execute("DELETE FROM loaded WHERE source <> ?", [source])
            return {part for (part,) in connection.execute("SELECT part FROM loaded")}

    def finish_part(self, source: str, part: int) -> None:
        """Remembers that a part of a source is in the store whole."""
        with self._told(), self._writer as connection:
            connection.execute("INSERT OR IGNORE INTO loaded VALUES (?, ?)", [source, part])

    def count(self) -> int:
        """Returns the number of users."""
        with self._told(), self._reader as connection:
            return int(connection.execute("SELECT count(*) FROM users").fetchone()[0])

    def close(self) -> None:
        """Lets go of the file."""
        for each in (self._reader, self._writer):
            with each.lock:
                each.one.close()

    def _every(self, table: str) -> Iterator[list[Any]]:
        """Yields the rows of a table, whole users at a time but for those with very many."""
        last: tuple[bytes, bytes] = (b"", b"")
        while True:
            query = f"SELECT user, id, record FROM {table} WHERE (user, id) > (?, ?) ORDER BY user, id LIMIT {ROWS}"  # noqa: S608 - ours
            with self._told(), self._reader as connection:
                rows = connection.execute(query, last).fetchall()
            if not rows:
                return
            yield rows
            last = rows[-1][:2]

    def _no_store(self) -> StoreError:
        return StoreError(f"{self._path} is no store of tesserec: name one, or a file that is not there yet.")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise self._no_store() from error
            raise StoreError(
                f"The store {self._path} cannot be used ({error}): see that its folder can be written and its disk has "
                "room, or name another file."
            ) from error


def _make(path: Path) -> None:
    """Makes an empty store; it appears whole, for others may open it at the same moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        new = Path(folder, "new")
        with closing(sqlite3.connect(new)) as connection:
            for statement in SCHEMA:
                connection.execute(statement)
        with suppress(FileExistsError):  # another process was faster
            path.hardlink_to(new)


class _Shared:
    """A connection that threads take turns at; a block with it is one transaction."""

    def __init__(self, path: str, begin: str) -> None:
        self.one = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self.one.execute("PRAGMA secure_delete = ON")  # what is removed is overwritten
        self.lock, self._begin = threading.Lock(), begin

    def __enter__(self) -> sqlite3.Connection:
        self.lock.acquire()
        try:
            self.one.execute(self._begin)
        except BaseException:
            self.lock.release()
            raise
        return self.one

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.one.execute("COMMIT")
        finally:
            if self.one.in_transaction:
                self.one.execute("ROLLBACK")
            self.lock.release()


def _records(connection: sqlite3.Connection, users: Sequence[bytes]) -> dict[bytes, bytes]:
    """Returns the records of those users that there are."""
    found: dict[bytes, bytes] = {}
    for start in range(0, len(users), MOST_IDS):
        some = users[start : start + MOST_IDS]
        query = f"SELECT id, record FROM users WHERE id IN ({', '.join('?' * len(some))})"  # noqa: S608 - marks
        found.update(connection.execute(query, some).fetchall())
    return found


def _events(connection: sqlite3.Connection, user: bytes) -> list[Event]:
    rows = connection.execute("SELECT user, id, record FROM events WHERE user = ?", [user]).fetchall()
    return [unpack_event(*row) for row in rows]


def _act(connection: sqlite3.Connection, user: bytes, recommendation_id: bytes) -> None:
    """Notes that a user has acted on an answer, which may not be here yet."""
    place = [user, recommendation_id]
    if connection.execute("INSERT OR IGNORE INTO acted VALUES (?, ?)", place).rowcount:
        query = "SELECT user, id, record FROM impressions WHERE (user, id) = (?, ?)"
        for row in connection.execute(query, place).fetchall():
            if (answer := unpack_impression(*row)).counts:
                _count(connection, user, answer, answers=0, acted=1)


def _count(connection: sqlite3.Connection, user: bytes, answer: Impression, *, answers: int, acted: int) -> None:
    place = [user, answer.since, answer.run]
    connection.execute("INSERT OR IGNORE INTO tallies (user, since, run) VALUES (?, ?, ?)", place)
    query = "UPDATE tallies SET answers = answers + ?, acted = acted + ? WHERE (user, since, run) = (?, ?, ?)"
    connection.execute(query, [answers, acted, *place])


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT ifnull(max(version), 0) FROM items").fetchone()[0])


def _put(connection: sqlite3.Connection, user: bytes, new: User) -> None:
    query = "INSERT INTO users VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
    connection.execute(query, [user, pack(new)])
