"""Users, events, impressions and items as bytes, the same in every store."""

from __future__ import annotations

import json

import numpy as np

from serving.stores.base import Event, Impression, Item, User

FORMAT = 3  # of the records; raised when they change


def pack(user: User) -> bytes:
    """Returns the record of a user: int64, little endian; three counts, who learned of them, what they liked and when,
    what they dislike.
    """
    counts = np.array([user.events, len(user.trained), len(user.items)])
    trained = np.array(user.trained, np.int64)
    return np.concatenate([counts, trained, user.items, user.times, user.disliked]).astype("<i8").tobytes()


def unpack(record: bytes) -> User:
    """Returns the user of a record."""
    values = np.frombuffer(record, "<i8").astype(np.int64)
    events, learned, liked = values[:3].tolist()
    trained, items, times, disliked = np.split(values[3:], [learned, learned + liked, learned + 2 * liked])
    return User(items, times, events, tuple(trained.tolist()), disliked)


def pack_event(event: Event) -> bytes:
    """Returns an event without its user and its own id, which are its key."""
    return _packed(event[2:])


def unpack_event(user_id: bytes, event_id: bytes, record: bytes) -> Event:
    """Returns the event of a key and a record."""
    return Event(unkey(user_id), unkey(event_id), *json.loads(record))


def pack_impression(impression: Impression) -> bytes:
    """Returns an impression without its user and its own id, which are its key."""
    return _packed(impression[2:])


def unpack_impression(user_id: bytes, recommendation_id: bytes, record: bytes) -> Impression:
    """Returns the impression of a key and a record."""
    return Impression(unkey(user_id) or None, unkey(recommendation_id), *json.loads(record))


def pack_item(item: Item) -> bytes:
    """Returns an item without its id, which is its key: a line of JSON, then the vector, little endian."""
    return _packed((item.state, item.about)) + b"\n" + item.vector.astype("<f4").tobytes()


def unpack_item(item_id: bytes, record: bytes) -> Item:
    """Returns the item of a key and a record."""
    line, _, vector = record.partition(b"\n")
    state, about = json.loads(line)
    return Item(unkey(item_id), state, about, np.frombuffer(vector, "<f4").astype(np.float32))


def key(text: str | None) -> bytes:
    """Returns an id as bytes, none for a visitor; half a surrogate pair, which no text encoding takes, is one, too."""
    return (text or "").encode("utf-8", "surrogatepass")


def unkey(content: bytes) -> str:
    """Returns the id of such bytes."""
    return content.decode("utf-8", "surrogatepass")


def _packed(fields: tuple[object, ...]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
