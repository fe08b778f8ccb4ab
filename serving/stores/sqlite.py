"""Users in a SQLite file: the store of one machine, which needs no server.

The file is in WAL mode: any number of processes read while one writes. It has to be on a local disk.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from serving.stores.base import User
from serving.stores.records import FORMAT, key, pack, unpack
from storage import files
from storage.errors import UserError

APPLICATION = int.from_bytes(b"tess", "big")  # what SQLite calls the application_id of a file
BUSY_S = 30.0  # how long a writer waits for another one
MOST_IDS = 32_766  # parameters of a query
SCHEMA = (
    "PRAGMA journal_mode = WAL",
    "CREATE TABLE users (id BLOB PRIMARY KEY, record BLOB NOT NULL)",
    "CREATE TABLE loaded (source TEXT, part INTEGER, PRIMARY KEY (source, part))",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
)


class SqliteStore:
    """Users in a SQLite file; threads share one connection and take turns."""

    def __init__(self, path: str, *, create: bool) -> None:
        """Opens the file; where there is none, makes it and its folder if it may.

        Raises:
            UserError: the file is missing or no store, or cannot be read or written.
        """
        self._path, self._lock = files.absolute(path), threading.Lock()
        with self._told():
            if not Path(self._path).exists():
                if not create:
                    raise UserError(
                        f"There is no store at {self._path}: fill it with `tesserec load RUN --store sqlite:PATH`."
                    )
                _make(Path(self._path))
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_S, isolation_level="IMMEDIATE", check_same_thread=False
            )
            self._connection.execute("PRAGMA synchronous = NORMAL")  # safe in WAL: a commit may be lost, never be half
            application, version = (
                self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
        if application != APPLICATION:
            raise self._no_store()
        if version != FORMAT:
            raise UserError(f"{self._path} is a store of another version of tesserec: load the run into a new file.")

    def read(self, user_ids: Sequence[str]) -> list[User | None]:
        """Returns the users of these ids; None for one that it does not have."""
        keys, found = [key(user_id) for user_id in user_ids], dict[bytes, bytes]()
        for start in range(0, len(keys), MOST_IDS):
            some = keys[start : start + MOST_IDS]
            query = f"SELECT id, record FROM users WHERE id IN ({', '.join('?' * len(some))})"  # noqa: S608 - marks
            with self._told(), self._lock:
                found.update(self._connection.execute(query, some).fetchall())
        return [unpack(found[one]) if one in found else None for one in keys]

    def write(self, user_ids: Sequence[str], users: Sequence[User]) -> None:
        """Adds users, or replaces those that it has; all of them or none."""
        rows = [(key(user_id), pack(user)) for user_id, user in zip(user_ids, users, strict=True)]
        with self._told(), self._lock, self._connection:
            self._connection.executemany(
                "INSERT INTO users VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record", rows
            )

    def begin_load(self, source: str) -> set[int]:
        """Returns the parts of a source that are in the store whole, and forgets those of any other source."""
        with self._told(), self._lock, self._connection:
            self._connection.execute("DELETE FROM loaded WHERE source <> ?", [source])
            return {part for (part,) in self._connection.execute("SELECT part FROM loaded")}

    def finish_part(self, source: str, part: int) -> None:
        """Remembers that a part of a source is in the store whole."""
        with self._told(), self._lock, self._connection:
            self._connection.execute("INSERT OR IGNORE INTO loaded VALUES (?, ?)", [source, part])

    def count(self) -> int:
        """Returns the number of users."""
        with self._told(), self._lock:
            return int(self._connection.execute("SELECT count(*) FROM users").fetchone()[0])

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._connection.close()

    def _no_store(self) -> UserError:
        return UserError(f"{self._path} is no store of tesserec: name one, or a file that is not there yet.")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise self._no_store() from error
            raise UserError(
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
