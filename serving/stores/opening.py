"""A store from its address."""

from __future__ import annotations

from serving.stores.base import LoadableStore
from storage.errors import UserError

REDIS = ("redis://", "rediss://", "unix://")


def open_store(uri: str, *, create: bool = False) -> LoadableStore:
    """Opens the store at `sqlite:PATH`, `redis://HOST:PORT/DATABASE`, `rediss://…` or `unix://SOCKET`.

    Args:
        uri: the address.
        create: whether a SQLite file that is not there is made.

    Raises:
        UserError: the address is none of these, or there is no store that can be used.
    """
    if uri.startswith("sqlite:") and (path := uri.removeprefix("sqlite:")) and "://" not in path:
        from serving.stores.sqlite import SqliteStore

        return SqliteStore(path, create=create)
    if uri.startswith(REDIS):
        from serving.stores.redis import RedisStore

        return RedisStore(uri)
    shown = uri.rpartition("@")[2]  # before it, there may be a password
    raise UserError(f"{shown!r} is no store: write sqlite:PATH, of a local file, or redis://HOST:PORT/DATABASE.")
